// A prediction: pick, commit, then read what the kit computed. Once committed it stays.

export default {
  render({ model, el }) {
    const name = `nk-ask-${Math.random().toString(36).slice(2)}`;
    const set = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = model.get("prompt");
    set.append(legend);
    const radios = model.get("options").map((text, i) => {
      const label = document.createElement("label");
      const radio = document.createElement("input");
      Object.assign(radio, { type: "radio", name, value: i });
      radio.setAttribute("data-lm-suppress-shortcuts", "true");
      label.append(radio, ` ${text}`);
      set.append(label);
      return radio;
    });
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: "Commit", disabled: true });
    button.setAttribute("data-lm-suppress-shortcuts", "true");
    const reply = document.createElement("p");
    reply.setAttribute("role", "status");
    const show = () => {
      const chosen = model.get("chosen");
      if (chosen < 0) return;
      radios.forEach((r, i) => { r.checked = i === chosen; r.disabled = true; });
      button.disabled = true;
      reply.textContent = model.get("reply") || "Computing ...";
    };
    set.addEventListener("change", () => { button.disabled = false; });
    button.addEventListener("click", () => {
      model.set("chosen", radios.findIndex((r) => r.checked));
      model.save_changes();
    });
    model.on("change", show);
    el.classList.add("nk-lab", "nk-ask");
    set.append(button, reply);
    el.append(set);
    show();
    return () => model.off("change", show);
  },
};
