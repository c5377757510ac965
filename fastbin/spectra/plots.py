"""The figures of a study, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastbin.spectra.distances import classical_scaling, density, distance_matrix
from fastbin.spectra.study import WHOLE, Evolution, Group, Study, kind_matrix


def figures(found: Study) -> Iterator[tuple[str, str, bytes]]:
    """File name, caption and PNG of each figure."""
    signs = f"weights of real networks: {found.signed}"
    yield (
        "densities.png",
        f"Density of the eigenvalues of normalised Laplacians, mean over networks; dotted: random structures of the same "
        f"degrees; {signs}",
        _png(_densities, found),
    )
    yield (
        "distances.png",
        f"Mean distance ({found.metric}) between kinds, and within a kind; whole networks; {signs}",
        _png(_heat_maps, found),
    )
    yield (
        "embedding.png",
        f"All networks by distance ({found.metric}, classical scaling); hollow: random structures of the same degrees; "
        f"{signs}",
        _png(_embeddings, found),
    )
    if found.evolutions:
        yield (
            "evolution.png",
            "The spectrum along a search, and its distance from start and end",
            _png(_evolutions, found),
        )


def _png(draw: Callable[[Study, Figure], None], found: Study) -> bytes:
    figure = Figure(layout="constrained")
    draw(found, figure)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _by_data(found: Study) -> dict[str, list[Group]]:
    return {data: [g for g in found.groups if g.data == data] for data in dict.fromkeys(g.data for g in found.groups)}


def _colours(found: Study) -> dict[str, tuple[float, ...]]:
    kinds = list(dict.fromkeys(g.kind for g in found.groups))
    return {kind: colormaps["turbo"]((i + 0.5) / len(kinds)) for i, kind in enumerate(kinds)}


def _densities(found: Study, figure: Figure) -> None:
    data, colours = _by_data(found), _colours(found)
    parts = list(dict.fromkeys(part for g in found.groups for part in g.spectra))
    figure.set_size_inches(4.2 * len(parts), 3.6 * len(data))
    axes = figure.subplots(len(data), len(parts), squeeze=False)
    for row, (name, groups) in zip(axes, data.items(), strict=True):
        for panel, part in zip(row, parts, strict=True):
            for g in groups:
                for spectra, style in ((g.spectra.get(part), "-"), (g.nulls.get("same degrees", {}).get(part), ":")):
                    if spectra:
                        curves = [density(s, 0.0, 2.0) for s in spectra]
                        mean = torch.stack([curve for _, curve in curves]).mean(0).numpy()
                        label = g.kind if style == "-" else None
                        panel.plot(curves[0][0].numpy(), mean, style, color=colours[g.kind], linewidth=1, label=label)
            panel.set_title(f"{name}, {part}")
            panel.set_xlabel("eigenvalue")
            panel.set_yscale("log")
            panel.set_ylim(bottom=1e-4)
            panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend(fontsize="x-small")


def _heat_maps(found: Study, figure: Figure) -> None:
    data = _by_data(found)
    most = max(map(len, data.values()))
    figure.set_size_inches(len(data) * (2.5 + 0.55 * most), 2.0 + 0.55 * most)
    for panel, (name, groups) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items(), strict=True):
        means = kind_matrix(groups, WHOLE, found.metric).numpy()
        image = panel.imshow(means, cmap="viridis_r")
        labels = [g.kind for g in groups]
        panel.set_xticks(range(len(labels)), labels, rotation=90)
        panel.set_yticks(range(len(labels)), labels)
        for i, j in np.ndindex(*means.shape):
            dark = means[i, j] > 0.5 * means.max()
            panel.text(j, i, f"{means[i, j]:.2g}", ha="center", va="center", fontsize=6, color="w" if dark else "k")
        panel.set_title(name)
        figure.colorbar(image, ax=panel, shrink=0.7)


def _embeddings(found: Study, figure: Figure) -> None:
    data, colours = _by_data(found), _colours(found)
    figure.set_size_inches(6.5 * len(data), 5.5)
    for panel, (name, groups) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items(), strict=True):
        shown = [(g, hollow, s) for g in groups for hollow in (False, True) for s in _spectra_of(g, hollow)]
        points, share = classical_scaling(distance_matrix([s for _, _, s in shown], found.metric))
        for (g, hollow, _), (x, y) in zip(shown, points.tolist(), strict=True):
            face = "none" if hollow else colours[g.kind]
            panel.scatter(x, y, s=28, facecolors=face, edgecolors=[colours[g.kind]], linewidths=1)
        for g in groups:
            panel.scatter([], [], s=28, color=[colours[g.kind]], label=g.kind)
        panel.set_title(f"{name}: {100 * share:.0f} % of the spread shown")
        panel.set_aspect("equal", adjustable="datalim")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")


def _spectra_of(group: Group, null: bool) -> list:  # type: ignore[type-arg]
    return group.nulls.get("same degrees", {}).get(WHOLE, []) if null else group.spectra[WHOLE]


def _evolutions(found: Study, figure: Figure) -> None:
    figure.set_size_inches(11, 3.4 * len(found.evolutions))
    for (left, right), evolution in zip(
        figure.subplots(len(found.evolutions), 2, squeeze=False), found.evolutions, strict=True
    ):
        _evolution(evolution, found, left, right)


def _evolution(evolution: Evolution, found: Study, left: Axes, right: Axes) -> None:
    curves = [density(s, 0.0, 2.0) for s in evolution.spectra]
    image = torch.stack([curve for _, curve in curves], 1).clamp_min(1e-3).log10().numpy()
    points = curves[0][0].numpy()
    edges = np.arange(len(evolution.epochs) + 1) - 0.5
    mesh = left.pcolormesh(edges, np.append(points, 2 * points[-1] - points[-2]), image, shading="flat")
    left.set_ylabel("eigenvalue")
    left.set_title(evolution.name)
    left.figure.colorbar(mesh, ax=left, label="log10 of the density")
    ticks = range(0, len(evolution.epochs), max(1, len(evolution.epochs) // 8))
    left.set_xticks(ticks, [str(evolution.epochs[i]) for i in ticks])
    distances = distance_matrix(evolution.spectra, found.metric).numpy()
    right.plot(evolution.epochs, distances[0], ".-", label=f"from epoch {evolution.epochs[0]}")
    right.plot(evolution.epochs, distances[-1], ".-", label=f"from epoch {evolution.epochs[-1]}")
    right.set_ylabel(f"distance ({found.metric})")
    right.grid(alpha=0.3)
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("epoch")
