"""Pictures in a row behind a slider, or moving: for notebooks, static pages and files, with nothing to install.

Matplotlib and Pillow are imported when a picture is taken.
"""

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = 64
"""Of a picture: enough for lines with smooth edges, at a third of the size."""

SHOW = (
    "const f=this.closest('figure'),k=+f.querySelector('input').value;"
    "f.querySelectorAll('img').forEach((e,i)=>e.style.display=i==k?'block':'none');"
    "f.querySelector('output').value=f.querySelectorAll('img')[k].alt"
)
PLAY = (
    "const f=this.closest('figure'),s=f.querySelector('input');"
    "if(f.timer){{clearInterval(f.timer);f.timer=0;this.textContent='\\u25b6';return}}"
    "this.textContent='\\u23f8';"
    "f.timer=setInterval(()=>{{s.value=(+s.value+1)%{count};s.dispatchEvent(new Event('input'))}},{pause})"
)
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<title>{title}</title><body style="margin:1.5rem;font-family:system-ui,sans-serif">{film}'
)


@dataclass(frozen=True, eq=False, repr=False)
class Film:
    """Pictures of one figure at several moments or settings; a notebook shows it as a slider with a button.

    The page is complete in itself: pictures are embedded, the few lines of script are in the elements, and where
    scripts are not run the picture `first` is seen.

    Attributes:
        pictures: PNG files.
        captions: One a picture, beside the slider.
        first: Index of the picture that is seen at the beginning.
        frames_per_second: Of the button and of a `.gif`.

    Raises:
        ValueError: No picture, captions of another number, `first` out of range, or a rate that is not positive.
    """

    pictures: Sequence[bytes]
    captions: Sequence[str]
    first: int = 0
    frames_per_second: float = 8.0

    def __post_init__(self) -> None:
        if not self.pictures or len(self.pictures) != len(self.captions):
            raise ValueError(
                f"Film: as many captions as pictures are needed, at least one; got {len(self.pictures)} pictures "
                f"and {len(self.captions)} captions."
            )
        if not 0 <= self.first < len(self.pictures):
            raise ValueError(f"Film: first must be from 0 to {len(self.pictures) - 1}, got {self.first}.")
        if not self.frames_per_second > 0:
            raise ValueError(f"Film: frames_per_second must be positive, got {self.frames_per_second}.")

    @classmethod
    def of(
        cls,
        figure: "Figure",
        draw: Callable[[int], object],
        captions: Sequence[str],
        *,
        first: int = 0,
        frames_per_second: float = 8.0,
    ) -> Self:
        """Take one picture a caption, of what `draw(index)` has made of the figure.

        As long as the axes stay the same ones their layout is that of the first picture; changing what is in them is
        several times faster than drawing them anew.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas, layout = FigureCanvasAgg(figure), figure.get_layout_engine()
        pictures, axes = [], None
        for index in range(len(captions)):
            draw(index)
            figure.set_layout_engine("none" if figure.axes == axes else layout)
            axes = figure.axes
            canvas.draw()
            pictures.append(_small(canvas.buffer_rgba()))
        return cls(pictures, captions, first, frames_per_second)

    def html(self) -> str:
        """An element for any page."""
        shown = "".join(
            f'<img alt="{html.escape(caption)}" style="display:{"block" if rank == self.first else "none"};'
            f'max-width:100%" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
            for rank, (picture, caption) in enumerate(zip(self.pictures, self.captions, strict=True))
        )
        count = len(self.pictures)
        play = html.escape(PLAY.format(count=count, pause=round(1000 / self.frames_per_second)))
        return (
            f'<figure style="margin:0">{shown}<button aria-label="play" onclick="{play}">▶</button> '
            f'<input type="range" min="0" max="{count - 1}" value="{self.first}" aria-label="picture" '
            f'style="width:50%;vertical-align:middle" oninput="{html.escape(SHOW)}"> '
            f"<output>{html.escape(self.captions[self.first])}</output></figure>"
        )

    _repr_html_ = html

    def __repr__(self) -> str:
        return f"Film of {len(self.pictures)} pictures"

    def save(self, path: Path | str) -> None:
        """Write `.html` with a slider, or a `.gif` that moves; `path` is replaced atomically.

        Raises ValueError for another suffix.
        """
        path = film_path(path)
        with replacing(path) as temporary:
            if path.suffix == ".html":
                page = PAGE.format(title=html.escape(path.stem), film=self.html())
                temporary.write_text(page, encoding="utf-8")
            else:
                self._write_gif(temporary)

    def _write_gif(self, path: Path) -> None:
        from PIL import Image

        first, *others = [Image.open(io.BytesIO(one)) for one in self.pictures]
        pause = round(1000 / self.frames_per_second)
        first.save(path, format="GIF", save_all=True, append_images=others, duration=pause, loop=0)


def film_path(path: Path | str) -> Path:
    """A path that a film can be saved at; ValueError for another suffix than `.gif` and `.html`."""
    path = Path(path)
    if path.suffix not in (".gif", ".html"):
        raise ValueError(f"path must end in .gif or .html, got {path.name!r}.")
    return path


def _small(pixels: memoryview) -> bytes:
    """RGBA `(row, column, 4)` as a PNG file of few colours, among them all that cover much."""
    import numpy as np
    from PIL import Image

    written = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels)[..., :3]).quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    image.save(written, format="PNG", optimize=True)
    return written.getvalue()
