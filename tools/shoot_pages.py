"""Takes pictures of written pages, to be looked at: at the width of a desk and of a telephone, light and dark.

    python tools/shoot_pages.py runs/demo/comparison.html evidence/report.html --out /tmp/shots
    python tools/shoot_pages.py runs/demo/run/report.html --out /tmp/shots --chromium /usr/bin/chromium

It needs a Chromium, which is no dependency of diffadapt: the one named, else the first found. What is wider than the
screen, a cut word or a grey on grey is seen by eye alone; docs/evaluation.md says what was looked at.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1280, 390)
TALLEST = 16_000  # pixels; Chromium takes no taller picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE.html")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pictures go")
    parser.add_argument("--chromium", metavar="PROGRAM", help=f"the browser (default: the first of {', '.join(NAMES)})")
    asked = parser.parse_args()
    browser = asked.chromium or next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        raise SystemExit(f"no Chromium found under {', '.join(NAMES)}; name one with --chromium")
    asked.out.mkdir(parents=True, exist_ok=True)
    for page in asked.pages:
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                picture = asked.out / f"{page.parent.name}-{page.stem}-{width}-{scheme}.png"
                shoot(browser, page.resolve(), picture.resolve(), width, dark=scheme == "dark")
                print(picture)


def shoot(browser: str, page: Path, picture: Path, width: int, *, dark: bool) -> None:
    """Writes a picture of a whole page.

    A window of Chromium is no narrower than 500 pixels, so that the page is shown in a frame of the width wanted.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame, measured = Path(folder) / "frame.html", Path(folder) / "measured.html"
        style = "<style>body{margin:0}iframe{border:0;display:block;width:%dpx;height:%dpx}</style>"
        address = f'<!doctype html>{style}<iframe src="{page.as_uri()}" id=it></iframe>'
        told = "<script>onload=()=>document.title=it.contentDocument.documentElement.scrollHeight</script>"
        measured.write_text(address % (width, 900) + told)
        title = re.search(r"<title>(\d+)</title>", _run(browser, folder, measured, width, dark, "--dump-dom"))
        height = min(int(title[1]) if title else TALLEST, TALLEST)
        frame.write_text(address % (width, height))
        _run(browser, folder, frame, width, dark, f"--screenshot={picture}", height=height)


def _run(browser: str, folder: str, page: Path, width: int, dark: bool, *what: str, height: int = 900) -> str:
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
        f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", "--virtual-time-budget=5000",
        *(["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]),
        *what, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=180).stdout


if __name__ == "__main__":
    main()
