"""What every page must satisfy, and what can be read off it."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}
LOADING = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}


class Checker(HTMLParser):
    """Records elements, texts and attributes; fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.goes_on = False  # a <wbr> does not end a text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.goes_on = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.goes_on and data.strip():
            where, text = self.texts.pop()
            self.texts.append((where, text + data.strip()))
        elif data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))


def check(content: str) -> Checker:
    checker = Checker()
    checker.feed(content)
    checker.close()
    assert checker.open == []
    ids = [attributes["id"] for _, attributes in checker.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in checker.tags:
        for name in LOADING & attributes.keys():
            local = (attributes[name] or "").startswith(("#", "figures/", "tables/", "data:"))
            assert local, f"<{tag} {name}={attributes[name]}> is loaded from elsewhere"
    assert "@import" not in content
    assert not re.search(r"url\((?!#)", content)
    return checker


def cells(content: str) -> list[tuple[str, str]]:
    """Title and text of every heatmap cell."""
    return re.findall(r'<td class=\S+ tabindex=-?\d title="([^"]*)">([^<]*)</td>', content)
