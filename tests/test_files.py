import gzip
import re

import numpy as np
import pytest

from normkit import files


def test_digits_are_scikit_learns_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    want = datasets.load_digits()
    images, labels = files.digits()
    assert images.dtype == np.float64
    assert images.shape == (1797, 64)
    assert np.array_equal(images * 16, want.data)  # exact: 16ths are floats without rounding
    assert np.array_equal(labels, want.target)


def test_digits_can_be_told_apart_by_their_nearest_neighbor():
    images, labels = files.digits()
    train, test = slice(0, 1500), slice(1500, None)
    squared = (images[test] ** 2).sum(1)[:, None] - 2 * images[test] @ images[train].T + (images[train] ** 2).sum(1)
    found = labels[train][squared.argmin(1)]
    # 1-NN is right on about 97 % of this data; labels shuffled against images would give 10 %
    assert (found == labels[test]).mean() > 0.9


def test_digits_are_shared_and_cannot_be_spoiled():
    images, labels = files.digits()
    assert files.digits()[0] is images
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 1


def test_text_is_about_forty_different_sentences():
    sentences = files.text()
    assert 35 <= len(sentences) <= 50
    assert len(set(sentences)) == len(sentences)
    assert all(re.fullmatch(r"[A-Z].{20,150}[.?!]", s) for s in sentences)
    sentences.clear()
    assert files.text(), "a caller that changes its list must not change the next one's"


def test_data_path_names_what_is_there():
    with gzip.open(files.data_path("digits.csv.gz")) as rows:
        assert next(rows).count(b",") == 64
    with pytest.raises(FileNotFoundError, match=r"no data file 'digit\.csv'.*digits\.csv\.gz"):
        files.data_path("digit.csv")
    with pytest.raises(FileNotFoundError, match="no data file"):
        files.data_path("../pyproject.toml")


def test_data_path_of_a_broken_installation_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "normkit")
    with pytest.raises(FileNotFoundError, match="reinstall normkit"):
        files.data_path("text.txt")


def test_a_wheels_own_copy_comes_first(monkeypatch, tmp_path):
    for folder in (tmp_path / "normkit" / "_data", tmp_path / "data"):
        folder.mkdir(parents=True)
        (folder / "digits.csv.gz").touch()
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "normkit")
    assert files.data_path() == tmp_path / "normkit" / "_data"


def test_references_are_well_formed_and_cover_the_claims():
    bib = files.data_path("references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),(.*)\}$", bib, re.MULTILINE)
    assert len(entries) == bib.count("@")
    keys = [key for key, _ in entries]
    assert len(set(keys)) == len(keys)
    ids = []
    for key, body in entries:
        assert body.count("{") == body.count("}"), key
        fields = dict(re.findall(r"(\w+)=\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}", body))
        assert {"title", "author", "year", "eprint"} <= fields.keys(), key
        ids.append(fields["eprint"])
        assert fields["year"] in key
        # an arXiv id begins with year and month; a conference may print the paper up to two years later
        assert 0 <= int(fields["year"]) - 2000 - int(fields["eprint"][:2]) <= 1, key
    assert len(set(ids)) == len(ids)
    from normkit import ledger

    cited = {claim.arxiv for claim in ledger.claims().values() if claim.arxiv}
    assert cited <= set(ids), f"claims cite papers that references.bib lacks: {sorted(cited - set(ids))}"


def test_standardized_digits_are_the_digits_in_an_order_of_their_own():
    images, labels = files.digits()
    one, other = (files.standardized_digits(name) for name in ("one", "a/path"))
    for x, y in (one, other):
        assert x.mean() == pytest.approx(0, abs=1e-12)
        assert x.std() == pytest.approx(1, rel=1e-12)
        back = np.round((x * images.std() + images.mean()) * 16)
        mine, given = (sorted(map(tuple, np.column_stack([a, b]))) for a, b in ((back, y), (images * 16, labels)))
        assert mine == given  # every image with its own label, once
        assert not x.flags.writeable and not y.flags.writeable
    assert not np.array_equal(one[1], other[1])
    assert not np.array_equal(one[1], labels)
