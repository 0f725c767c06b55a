"""Films: pages that are complete in themselves, pictures that show what was drawn, files that are whole."""

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import pnp
from pnp.film import Film
from pnp.palette import ANION, CATION, GROUND, LIMIT, MODALITIES, SEQUENTIAL
from pnp.plotting import animate_profiles

matplotlib.use("agg")


def two_pictures(**options):
    figure = Figure(figsize=(2, 2), dpi=50)
    ax = figure.subplots()
    (line,) = ax.plot([0, 1], [0, 1], lw=6)
    return Film.of(figure, lambda index: line.set_color((CATION, ANION)[index]), ["a < b", "c"], **options)


def colours(picture):
    return {
        rgb for count, rgb in Image.open(io.BytesIO(picture)).convert("RGB").getcolors(10**4) if count > 50
    }


def rgb(code):
    return tuple(int(code[at : at + 2], 16) for at in (1, 3, 5))


def test_a_page_needs_nothing_outside():
    film = two_pictures(first=1)
    page = film.html()
    assert "http" not in page
    assert "<script" not in page
    pictures = [base64.b64decode(one) for one in re.findall(r'base64,([^"]+)"', page)]
    assert pictures == list(film.pictures)
    assert re.findall(r'alt="([^"]+)" style="display:(\w+)', page) == [("a &lt; b", "none"), ("c", "block")]
    assert page.endswith("<output>c</output></figure>")
    assert film._repr_html_() == page
    assert repr(film) == "Film of 2 pictures"


def test_pictures_have_the_colours_that_were_drawn():
    first, second = two_pictures().pictures
    assert rgb(CATION) in colours(first)
    assert rgb(CATION) not in colours(second)
    assert rgb(ANION) in colours(second)


def test_thin_lines_keep_their_colours_beside_shades():
    """A picture has few colours, and a choice of them by area alone would give all to the shades."""
    figure = Figure(figsize=(4, 3), dpi=60)
    ax = figure.subplots()
    drawn = (CATION, ANION, GROUND, LIMIT, *MODALITIES)
    for height, color in enumerate(drawn):
        ax.plot([0, 1], [height, height + 1], color=color, lw=1.5)
    ax.imshow(np.linspace(0, 1, 200)[None], extent=(0, 1, -4, -1), aspect="auto", cmap=SEQUENTIAL)
    ax.set_ylim(-4, 12)
    (picture,) = Film.of(figure, lambda index: None, [""]).pictures
    shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3).astype(int)
    for color in drawn:
        assert np.abs(shown - rgb(color)).max(-1).min() < 15, color
    assert shown[0].tolist() == [255, 255, 255]  # as the page around it


def test_a_gif_moves(tmp_path):
    two_pictures(frames_per_second=4).save(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as image:
        assert (image.n_frames, image.info["duration"]) == (2, 250)
        image.seek(1)
        assert rgb(ANION) in {one for _, one in image.convert("RGB").getcolors(10**4)}


def test_wrong_films_are_refused(tmp_path):
    for options, message in (
        ({"pictures": [], "captions": []}, "as many captions as pictures"),
        ({"pictures": [b""], "captions": ["a", "b"]}, "1 pictures and 2 captions"),
        ({"pictures": [b""], "captions": ["a"], "first": 1}, "first must be from 0 to 0, got 1"),
        ({"pictures": [b""], "captions": ["a"], "frames_per_second": 0}, "must be positive, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Film(**options)
    with pytest.raises(ValueError, match=r"must end in \.gif or \.html, got 'film\.mp4'"):
        two_pictures().save(tmp_path / "film.mp4")


def test_profiles_are_filmed_over_times_and_over_a_batch(tmp_path):
    ions = [pnp.Species("K+", valence=1, diffusivity=1.0), pnp.Species("Cl-", valence=-1, diffusivity=1.0)]
    voltage = torch.tensor([0.1, 2.0])
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(ions, permittivity=0.02),
        length=1.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )
    grid = pnp.Grid.refined(cell, 30)
    way = pnp.solve_transient(cell, grid, times=[0.0, 0.01, 1.0])
    film = animate_profiles(way, tmp_path / "way.html", element=1, log=True)
    assert list(film.captions) == ["t = 0 L² / D", "t = 0.01 L² / D", "t = 1 L² / D"]
    assert (tmp_path / "way.html").is_file()
    pictures = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(int) for one in film.pictures]
    assert (pictures[0] != pictures[2]).any()
    # The axes stand still, but for shades: every picture has colours of its own.
    assert abs(pictures[0] - pictures[2])[-40:].max() < 60 < abs(pictures[0] - pictures[2]).max()
    still = animate_profiles(pnp.solve_steady(cell, grid), captions=["low", "high"])
    assert len(still.pictures) == 2
    with pytest.raises(ValueError, match="captions must be 2, got 1"):
        animate_profiles(pnp.solve_steady(cell, grid), captions=["low"])
