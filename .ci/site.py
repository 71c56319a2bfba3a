"""What the site needs beyond mkdocs: pages that lie outside docs/, and a check of all links of what was built."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FILES = ["CITATION.cff", *sorted(f"examples/{path.name}" for path in (ROOT / "examples").iterdir() if path.is_file())]
OUTSIDE = PAGES | {name: name for name in FILES}
"""Files outside docs/ that pages link to, and where they are in the site."""

LOG = get_plugin_logger("links")


def on_files(files, config):
    """Add the files from outside docs/."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to where files are in the site."""
    is_outside = page.file.src_uri in PAGES.values()
    up = "../" * page.file.src_uri.count("/")

    def moved(match):
        name = match.group(1)
        if is_outside:
            return "](" + OUTSIDE.get(name, name.removeprefix("docs/"))
        source = name.removeprefix(f"{up}../")
        return f"]({up}{OUTSIDE[source]}" if name != source and source in OUTSIDE else match.group()

    return re.sub(r"\]\((?!https?:)([^)\s#]+)", moved, markdown)


class Page(HTMLParser):
    """The links of a page, and the anchors in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


def on_post_build(config):
    """Warn of every link inside the site that leads nowhere; `strict` makes that an error."""
    site = Path(config.site_dir).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                LOG.warning(f"{path.relative_to(site)} links to {link}, which is not there")
