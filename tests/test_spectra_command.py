"""``fastbin spectra``: folders of comparisons and of searches in, figures, tables and its part of the report out."""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise

import pytest
import torch

from bench.checks import matrix
from fastbin import BitMatrix, SearchConfig, checkpoint, run_search
from fastbin.cli import main
from fastbin.result import load_result
from fastbin.spectra import estimate_spectrum, laplacian_spectrum, network_graph, wasserstein
from fastbin.spectra.files import find_evolutions, find_networks, read_network
from fastbin.spectra.story import joined
from fastbin.spectra.study import half_width, kind_matrix, nearest, study

WIDTHS = [16, 24, 20, 4]
FILES = {"spectra.json", "pairs.csv", "spectra.html", "densities.png", "distances.png", "embedding.png"}


def save(folder, data, kind, seed, form, tensors, **metadata):
    path = folder / "networks" / data / kind / f"seed{seed}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, tensors, {"data": data, "kind": kind, "seed": seed, "form": form, **metadata})
    return path


def layers(density, seed):
    shapes = [(n_out, n_in) for n_in, n_out in pairwise(WIDTHS)]
    return [matrix(shape, 10 * seed + i, density) for i, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two data sets; kinds of bits at two densities, of real weights, and one that is no stack of layers."""
    folder = tmp_path_factory.mktemp("comparison")
    for data in ("digits", "mnist"):
        for seed in range(3 if data == "mnist" else 1):
            for kind, density in (("weight_free_hard", 0.5), ("random", 0.2)):
                words = {
                    f"layers.{i}.words": w.words for i, w in enumerate(layers(density, seed + 5 * (kind == "random")))
                }
                save(folder, data, kind, seed, "bits", words, widths=WIDTHS)
            g = torch.Generator().manual_seed(seed)
            real = {f"layers.{i}.weight": torch.randn(w.shape, generator=g) for i, w in enumerate(layers(0.5, seed))}
            save(folder, data, "dense", seed, "real", real, widths=WIDTHS)
    inputs, units = matrix((6, 5), 1), BitMatrix.pack(torch.rand(6, 6, generator=g).tril(-1) > 0.5)
    tensors = {
        "graph.inputs": inputs.words,
        "graph.units": units.words,
        "graph.activation": torch.zeros(6).long(),
    }
    save(folder, "digits", "weight_agnostic", 0, "graph", tensors, inputs=4, outputs=2)
    return folder


@pytest.fixture
def one(tmp_path):
    """A folder with one network, of real weights."""
    save(tmp_path, "digits", "dense", 0, "real", {"layers.0.weight": torch.randn(7, 9)}, widths=[9, 7])
    return tmp_path


@pytest.fixture(scope="module")
def found(comparison):
    return study(comparison)


def test_the_command_writes_everything(comparison, capfd):
    assert main(["spectra", str(comparison)]) == 0
    out, err = capfd.readouterr()
    assert err == "" and len(re.findall(r"^spectra +\d+/13  ", out, flags=re.M)) == 13
    assert out.splitlines()[-1] == f"written to {comparison / 'spectra'}"
    told = r"^mnist, layer 2: random to weight_free_hard 0\.\d+ ± 0\.\d+, p 0\.\d+, same density 0\.\d+, "
    assert re.search(told, out, flags=re.M)
    target = comparison / "spectra"
    assert {path.name for path in target.iterdir()} == FILES  # no search was recorded: no evolution.png
    for png in target.glob("*.png"):
        assert png.read_bytes().startswith(b"\x89PNG")
    result = json.loads((target / "spectra.json").read_text())
    assert result["made_with"]["command"] == f"fastbin spectra {comparison}" and result["signed"] == "absolute"
    assert len(result["networks"]) == 13
    rows = list(csv.DictReader((target / "pairs.csv").read_text().splitlines()))
    assert len(rows) == len(result["pairs"]) and {row["signed"] for row in rows} == {"absolute"}
    first = result["pairs"][0]
    assert rows[0]["kind"] == first["kinds"][0] and float(rows[0]["distance"]) == first["distance"]
    page = (target / "spectra.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"https?://|<script|src=\"(?!data:)", page)


def test_the_report_takes_it_in_once(one, capfd):
    (one / "report.html").write_text("<html><body><h1>compare</h1></body></html>")
    for signed in ("absolute", "support"):
        assert main(["spectra", str(one), "--signed", signed]) == 0
    report = (one / "report.html").read_text()
    assert report.startswith("<html><body><h1>compare</h1>") and report.endswith("</body></html>")
    assert report.count('<section class="spectra"') == 1 and "<b>support</b>" in report


def test_json(one, capfd):
    assert main(["spectra", str(one), "--json", "--metric", "jensen_shannon", "--signed", "signed"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert err.count("spectra") == 1 and (result["metric"], result["signed"]) == ("jensen_shannon", "signed")
    assert result["networks"][0]["signs"] == "absolute"  # what connectivity and spanning trees are of


def test_what_a_study_finds(comparison, found):
    assert [(g.data, g.kind, g.seeds) for g in found.groups] == [
        ("digits", "dense", [0]), ("digits", "random", [0]), ("digits", "weight_agnostic", [0]),
        ("digits", "weight_free_hard", [0]), ("mnist", "dense", [0, 1, 2]), ("mnist", "random", [0, 1, 2]),
        ("mnist", "weight_free_hard", [0, 1, 2]),
    ]  # fmt: skip
    first = layers(0.5, 0)
    group = next(g for g in found.groups if (g.data, g.kind) == ("mnist", "weight_free_hard"))
    assert list(group.spectra) == ["whole", "layer 1", "layer 2", "layer 3"]
    assert group.spectra["whole"][0].values.equal(laplacian_spectrum(first).values)
    assert group.spectra["layer 2"][0].values.equal(laplacian_spectrum(first[1:2]).values)
    assert group.summaries[0].edges == sum(int(w.count()) for w in first)
    assert list(group.nulls) == ["same density", "same degrees"]
    dense = next(g for g in found.groups if g.kind == "dense")
    assert dense.nulls["same degrees"]["whole"][0].signs == "absolute"
    other = next(g for g in found.groups if g.kind == "weight_agnostic")
    assert list(other.spectra) == ["whole"] and other.nulls == {} and other.summaries[0].nodes == 11


def test_pairs(found):
    wanted = ("mnist", "whole", ["random", "weight_free_hard"])
    row = next(r for r in found.pairs if (r["data"], r["part"], r["kinds"]) == wanted)
    random, searched = (
        next(g for g in found.groups if (g.data, g.kind) == ("mnist", kind)) for kind in ("random", "weight_free_hard")
    )
    a, b = random.spectra["whole"], searched.spectra["whole"]
    distances = [[wasserstein(x, y) for y in b] for x in a]
    assert row["distance"] == pytest.approx(sum(map(sum, distances)) / 9)
    assert row["interval"] == pytest.approx(half_width([sum(d) / 3 for d in distances]))
    assert row["within"][0] == pytest.approx(sum(wasserstein(a[i], a[j]) for i, j in ((0, 1), (0, 2), (1, 2))) / 3)
    nulls = [g.nulls["same density"]["whole"] for g in (random, searched)]
    assert row["same density"] == pytest.approx(sum(wasserstein(x, y) for x in nulls[0] for y in nulls[1]) / 9)
    assert row["left"][0] == pytest.approx(
        sum(wasserstein(x, y) for x, y in zip(a, random.nulls["same degrees"]["whole"], strict=True)) / 3
    )
    # Random bits at densities 0.2 and 0.5 differ by density, and by nothing else: as far as their null models.
    assert row["p"] == pytest.approx(2 / 20) and row["permutations"] == 20
    assert row["same density"] == pytest.approx(row["distance"], rel=0.2)
    assert row["left"][0] < 0.5 * row["distance"]
    wanted = ("mnist", "whole", ["random", "random, same degrees"])
    own = next(r for r in found.pairs if (r["data"], r["part"], r["kinds"]) == wanted)
    assert own["p"] > 0.1 and own["same density"] is None
    alone = next(r for r in found.pairs if "weight_agnostic" in r["kinds"])
    assert alone["part"] == "whole" and alone["p"] is None and alone["same degrees"] is None
    names = [kind for kind, _ in nearest(found, "mnist", "whole", "weight_free_hard")]
    assert set(names) == {"dense", "random", "weight_free_hard, same density", "weight_free_hard, same degrees"}
    assert names[-1] in ("dense", "random")
    means = kind_matrix([random, searched], "whole", "wasserstein")
    assert float(means[0, 1]) == pytest.approx(row["distance"]) and float(means[0, 0]) == pytest.approx(
        row["within"][0]
    )


def test_large_networks_are_estimated(tmp_path):
    words = {f"layers.{i}.words": w.words for i, w in enumerate(layers(0.5, 0))}
    save(tmp_path, "mnist", "weight_free_hard", 0, "bits", words, widths=WIDTHS)
    (group,) = study(tmp_path, exact_nodes=40).groups
    whole, layer = group.spectra["whole"][0], group.spectra["layer 1"][0]
    assert whole.values.equal(estimate_spectrum(layers(0.5, 0)).values) and "Lanczos" in whole.method
    assert layer.method.startswith("svdvals")  # 40 nodes


def test_half_width():
    assert half_width([0.5]) is None
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302652729911275 / 3**0.5)  # t of 2 degrees of freedom


def test_report_takes_one_section():
    assert joined(joined("<body>a</body>", "x"), "y").replace("\n", "") == (
        "<body>a<!-- spectra: begin -->y<!-- spectra: end --></body>"
    )
    assert "<b>z</b>" in joined("no body", "<b>z</b>")


def test_evolution_of_a_search(tmp_path, capfd):
    flags = ["--hidden", "16", "--epochs", "3", "--seed", "2", "--out", str(tmp_path / "run"), "--snapshots"]
    assert main(["search", "digits", *flags]) == 0
    ((name, steps),) = find_evolutions(tmp_path / "run").items()
    assert name == "snapshots" and [epoch for epoch, _ in steps] == [0, 1, 2, 3]
    result = load_result(tmp_path / "run" / "network.safetensors")
    best = steps[result.best_epoch][1]
    assert best.layers == result.net.weights()
    assert (best.data, best.kind, best.seed) == ("digits", "weight_free_hard", 2)
    assert main(["spectra", str(tmp_path / "run")]) == 0
    capfd.readouterr()
    assert {path.name for path in (tmp_path / "run" / "spectra").iterdir()} == {*FILES, "evolution.png"}
    (told,) = json.loads((tmp_path / "run" / "spectra" / "spectra.json").read_text())["evolutions"]
    first, last = (laplacian_spectrum(steps[i][1].layers) for i in (0, 3))
    assert told["epochs"] == [0, 1, 2, 3] and told["from_the_first"][3] == pytest.approx(wasserstein(first, last))
    assert told["from_the_last"][3] == 0
    # A folder of searches is read as well.
    assert [(s.kind, s.seed) for s in find_networks(tmp_path)] == [("weight_free_hard", 2)]


def test_bits_are_told_before_and_after_each_epoch():
    seen = {}
    config = SearchConfig(hidden=(12,), epochs=2, seed=1, validation=0)
    result = run_search("digits", config, on_bits=lambda epoch, weights: seen.update({epoch: weights}))
    assert list(seen) == [0, 1, 2] and seen[2] == result.net.weights() and seen[0] != seen[1] != seen[2]


def test_what_is_wrong_with_a_folder(comparison, tmp_path, capfd):
    def complaint(folder):
        assert main(["spectra", str(folder)]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        return line

    assert "no folder" in complaint(tmp_path / "none")
    assert "no networks in" in complaint(tmp_path)
    sources = {
        "bits": {"layers.0.words": torch.full((3, 1), 2**6, dtype=torch.int32)},
        "real": {"layers.0.weight": torch.tensor([[float("nan")]])},
        "cloud": {},
    }
    expected = ("has bits set past column 5", "has values that are not finite", "metadata 'form' is 'cloud'")
    for (form, tensors), message in zip(sources.items(), expected, strict=True):
        path = save(tmp_path / form, "digits", "odd", 0, form, tensors, widths=[5, 3] if form == "bits" else [1, 1])
        assert message in complaint(tmp_path / form) and path.exists()
    path = save(tmp_path / "widths", "digits", "odd", 0, "bits", {}, widths=[3])
    with pytest.raises(checkpoint.CheckpointError, match=r"metadata 'widths' is \[3\]"):
        read_network(path)
    assert main(["spectra", str(comparison), "--signed", "both"]) == 2
    assert network_graph(layers(0.5, 0)).nodes == 64  # as the folder's
