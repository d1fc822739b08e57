"""How the pages of `drp data report` and `drp report` look in a real browser, wide and narrow, light and dark.

    python benchmarks/see_report.py                     # check, and write docs/images/data-report-*.png
    python benchmarks/see_report.py --page FILE.html    # look at a page of your own; nothing is written to docs
    python benchmarks/see_report.py --page FILE.html --save model-report    # ... but docs/images/model-report-*.png

Needs `pip install playwright` and a Chromium: that of `playwright install chromium`, or one on the PATH. Neither can be
had by pip alone, so this is no part of `make test`; tests/data/test_report.py checks all that needs no browser.

What must hold at every width and in both colour schemes: the page is not wider than its window, nothing is asked of the
network, the console is silent, every picture is drawn, and no text is paler than WCAG AA allows.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data")]

from dr_platform.data import report  # noqa: E402
from dr_platform.data.prepare import prepare  # noqa: E402

WIDTHS = {"desktop": (1280, 900, 1.0), "phone": (390, 844, 2.0)}  # pixels, and device pixels for each
_SHOWN = {"desktop": 3200, "phone": 2600}  # height of the pictures for docs, pixels
_BYTES = 300_000

# Luminance and contrast as WCAG 2 defines them, of each element with text against the nearest painted background.
_CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const lum = c => { const [r, g, b] = c.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const back = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  let worst = [99, ''];
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.tagName === 'title') continue;
    const style = getComputedStyle(e), svg = e.ownerSVGElement;
    const a = lum(parse(svg ? style.fill : style.color).slice(0, 3)), b = lum(back(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const name = `${e.tagName} ${e.getAttribute('class') || ''}: ${e.textContent.slice(0, 40)}`;
    if (ratio < worst[0]) worst = [ratio, name];
  }
  return worst;
}"""


def sample(place: Path) -> str:
    """The page over collections with planted faults and copies."""
    import report_collections as planted

    raw, prepared = place / "raw", place / "prepared"
    faults = {7: planted.dark, 18: planted.blurred, 29: planted.noise, 33: planted.negative}
    faults |= {41: planted.dark, 46: planted.dark, 52: planted.blurred, 54: planted.blurred, 55: planted.blurred}
    planted.write_collection(
        raw, "eyepacs", "public", {i: faults.get(i, planted.same) for i in range(70)}, size=256,
        licence="research, by the rules of the competition", regrade={13: None, 14: None},
    )  # fmt: skip
    again = {3: planted.mirrored, 11: planted.turned, 20: planted.same, 26: planted.wide}
    later = dict.fromkeys(range(100, 140), planted.wide) | {108: planted.dark, 117: planted.noise}
    planted.write_collection(raw, "messidor", "public", {**again, **later}, size=224, regrade={20: 4})
    planted.write_collection(
        raw, "clinic", "proprietary", dict.fromkeys([5, *range(200, 215)], planted.same), size=192, licence="contract"
    )
    for grade in (1, 2):
        config = planted.prepare_config(["eyepacs", "messidor", "clinic"], grade=grade, resolution=128)
        prepare(raw, prepared, config)
    return report.render(report.collect(raw, [prepared], config, project="Early retinopathy, 2026", date="2026-11-20"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Look at a data report in a browser.")
    parser.add_argument("--page", type=Path, help="a report to look at in place of the sample")
    parser.add_argument("--save", metavar="NAME", help="keep pictures of that page too, under this name")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="where the pictures go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        page = options.page
        if page is None:
            page = Path(place) / "report.html"
            page.write_text(sample(Path(place)), encoding="utf-8")
        name = options.save or (None if options.page else "data-report")
        faults = look(page.resolve(), options.out, name)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def look(path: Path, out: Path, kept: str | None) -> list[str]:
    """Open the page at every width in both schemes; what is amiss, in words. kept: name of the pictures in `out`."""
    from playwright.sync_api import sync_playwright

    faults = []
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for name, (width, height, scale) in WIDTHS.items():
            for scheme in ("light", "dark"):
                where = f"{name}, {scheme}"
                page = browser.new_page(
                    viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme=scheme
                )
                asked: list[str] = []
                said: list[str] = []
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.on("console", lambda message, said=said: said.append(message.text))
                page.goto(path.as_uri())
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
                ratio, which = page.evaluate(_CONTRAST)
                outside = [url for url in asked if not url.startswith(("file:", "data:"))]
                faults += [f"{where}: {wide[0]} px of content in {wide[1]} px"] if wide[0] > wide[1] else []
                faults += [f"{where}: {broken} pictures are not drawn"] if broken else []
                faults += [f"{where}: asks for {url}" for url in outside] + [f"{where}: says {text}" for text in said]
                faults += [f"{where}: contrast {ratio:.2f} of {which}"] if ratio < 4.5 else []
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
                tall = page.screenshot(full_page=True)
                (path.parent / f"{name}-{scheme}.png").write_bytes(tall)
                if kept and scheme == "light":
                    save(tall, out / f"{kept}-{name}.png", int(_SHOWN[name] * scale))
                print(
                    f"{where}: contrast at least {ratio:.2f} ({which.strip()}), {len(asked)} requests", file=sys.stderr
                )
                page.close()
        browser.close()
    return faults


def save(png: bytes, target: Path, height: int) -> None:
    """The upper part of a screenshot, in as many colours as fit into 300 kB."""
    with Image.open(io.BytesIO(png)) as image:
        upper = image.convert("RGB").crop((0, 0, image.width, min(image.height, height)))
    for colours in (256, 192, 128, 96, 64, 48, 32):
        stream = io.BytesIO()
        upper.quantize(colours, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if stream.tell() < _BYTES:
            target.write_bytes(stream.getvalue())
            return
    raise SystemExit(f"{target} does not fit into {_BYTES} bytes")


if __name__ == "__main__":
    sys.exit(main())
