// A claim's verdict with a button that runs the claim again. The kernel sends the texts; see normkit/badge.py.

export default {
  render({ model, el }) {
    const make = (tag, attributes) => {
      const node = document.createElement(tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const row = make("div", { class: "nk-run" });
    const button = make("button", { type: "button", title: model.get("help"), "data-lm-suppress-shortcuts": "true" });
    const progress = make("progress", { max: 1, "aria-label": "Progress" });
    const verdict = make("strong", { role: "status" });
    const details = make("div", { class: "nk-text" });
    const error = make("div", { class: "nk-error", role: "alert" });
    const show = () => {
      const running = model.get("running");
      button.textContent = running ? "Running" : "Rerun";
      button.setAttribute("aria-disabled", running); // `disabled` would drop the focus, and keys reach the notebook
      progress.hidden = !running;
      progress.value = model.get("done");
      verdict.textContent = model.get("verdict");
      details.textContent = model.get("details");
      error.textContent = model.get("error");
    };
    button.addEventListener("click", () => { if (!model.get("running")) model.send({ kind: "rerun" }); });
    model.on("change", show);
    row.append(button, verdict, progress);
    el.classList.add("nk-lab");
    el.append(row, details, error);
    show();
    return () => model.off("change", show);
  },
};
