"""Values -> an HTML page, by a template of this package. A page is one file that fetches nothing.

The templates are in `templates/`: `base.html` is the frame of a page with its one style sheet, `parts.html` has the
pieces that pages share, and every other file is a page.
"""

import base64
import functools
from pathlib import Path
from typing import Any

from dgiqa._version import __version__
from dgiqa.report.rows import readable, remarks

FOLDER = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """A page as text that is valid UTF-8. Every value is escaped; a missing one is an error."""
    return readable(_environment().get_template(template).render(values))


def data_uri(jpeg: bytes) -> str:
    """An encoded JPEG as the address of an `<img>`."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"version": __version__, "remarks": remarks}
    return environment
