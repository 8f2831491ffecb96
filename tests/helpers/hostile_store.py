"""A store whose texts, names, answers and settings try everything that could act on a page, a file or a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ftrace.scores import EXAMPLE_ID, QUERY_ID, Ledger, ScoreStore, Sum, Texts
from ftrace.scores.ledger import COLUMNS

# What must appear nowhere but in encoded chunks, and be asked for by no browser.
HOST = "hostile.invalid"
# What a script of a text would set on the window, and an element of one would be called.
MARK = "hostileMark"

_RUN = f"window.{MARK}=1"
TEXTS: dict[str, str] = {
    "script": f"<script>{_RUN}</script>",
    "image": f'<img src="http://{HOST}/i.png" onerror="{_RUN}">',
    "end of script": f"</script><script>{_RUN}</script>",
    "end of script in capitals": f"</SCRIPT ><svg/onload={_RUN}>",
    "comment": f"<!-- --> --!> <b id={MARK}>bold</b> <!--<script>",
    "CDATA": f"<![CDATA[ x ]]> ]]><i id={MARK}>y</i>",
    "end of style": f"</style></title></textarea></template><p id={MARK}>",
    "attribute": f"\"' onmouseover={_RUN} x=`",
    "entities": "&lt;script&gt; &amp;amp; &#60;b&#62; &notit; &",
    "link": f"[a](javascript:{_RUN}) javascript:{_RUN} data:text/html,<script>{_RUN}</script> http://{HOST}/a",
    "frame": f'<iframe src="//{HOST}/f"></iframe><base href="http://{HOST}/"><link rel=stylesheet href=http://{HOST}>',
    "style": f"<style>@import url(http://{HOST}/s.css);*{{display:none}}</style>",
    "refresh": f'<meta http-equiv="refresh" content="0;url=http://{HOST}/">',
    "JSON": '"}]}\\u0022,{"a":[1,2,{"b":null},"\\',
    "template": "${alert(1)} `${1}` {{7*7}} {%x%} #{1} <%= 1 %> $& $1 $$ \\1 %s %n {0}",
    "brackets": "( [ { \\ ^ $ * + ? . | ) ] }  (a+)+$ [[:alpha:]] (?<x>",
    "formula": "=cmd|' /C calc'!A0 @SUM(1) +1 -1",
    "formula in a link": f'=HYPERLINK("http://{HOST}/","click")',
    "shell": f"$(touch {MARK}) ; rm -rf / | `id` && \"'",
    "SQL": "'; DROP TABLE queries; --",
    "line separators": "a\u2028b\u2029c\u0085d\x0be\x0cf",
    "line breaks": "one\r\ntwo\rthree\n\n\n\tfour",
    "control characters": "\x00nul\x00 \x07bell \x1b[31mred\x1b]0;title\x07 \x7f \x9b31m",
    "changes of direction": "\u202eevil\u202c \u2066isolated\u2069 \u200f\u061c \u202a\u202b\u202d unclosed \u2067",
    "invisible": "a\u200bb\ufeffc\u2060d\u00ade\u115ff\u3164g\U000e0041",
    "combining": "Z\u0310\u0351\u0489" + "\u0301" * 300 + " e\u0301 \u1112\u1161\u11ab",
    "surrogates": "half \ud83d and \udc00 of a pair",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1f3\U0001f1f4 \U0001f600\ufe0f \u2764\ufe0f",
    "right to left": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd abc (1) \u0645\u0631\u062d\u0628\u0627!",
    "scripts": "\u0e2a\u0e27 \u4f60\u597d \u3053\u3093 \U00020000 \u0928\u092e\u0938\u094d\u0924\u0947",
    "markup of a terminal": "[red]x[/red] [link=http://x]y[/link] [/] \\[",
    "mathematics": "$\\frac{1}{0}$ \\begin{x} $$ %",
    "noncharacters": "\ufffe\uffff\ufffd \U0010ffff",
    "prototype": "__proto__",
    "empty": "",
    "spaces": " \t  ",
    "sentinels": "<extra_id_0> <extra_id_0> <extra_id_99> <pad></s>",
    "word": "word" * 5000,
    "long": "a long text. " * 80_000,  # a megabyte
}  # fmt: skip
NAMES = (
    "__proto__", "constructor", "toString", "hasOwnProperty", "valueOf", "prototype", "null", "undefined", "NaN", "0",
    "-0", "1e3", "../../etc/passwd", "a/b\\c", "#17", "CON", " ", "<b>name</b>", f"javascript:{_RUN}", "\u202eeman",
)  # fmt: skip
# The ends of int64, what doubles can't hold, and what looks like another.
IDS = (-(2**63), 2**63 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 0, -1, 1, 10, 100, 2**31, 2**32)
QUERY_IDS = (-(2**63), 2**63 - 1, 2**53 + 1, 2**53 + 2, 0, -1, 7, 70)
FACETS = ("__proto__", "constructor", "toString", "<i>facet</i>")
AXIS = "__proto__"  # by which scores are broken down
KIND = f"<img src=x onerror={MARK}>"  # beside "learning"


def hostile_store(folder: Path) -> ScoreStore:
    """Write a store with a ledger, names and texts: an example for each of the texts, and queries with some of them.

    Some examples have numbers at the ends of what fits, others have hostile names. Scores of the kind "learning" rank
    the examples in their order for the first query, and the other way round for the second. The third one's are all
    the same, the fourth one's are not known, and there are infinite ones.
    """
    texts = list(TEXTS.values())
    example_ids = np.array([*IDS, *range(1000, 1000 + len(texts) - len(IDS))], np.int64)
    names = {int(known): name for known, name in zip(example_ids[len(IDS) :], NAMES, strict=False)}
    names |= {query: name for query, name in zip(QUERY_IDS[:4], NAMES, strict=False) if query not in names}
    examples = [
        {
            EXAMPLE_ID: int(known), "text": text, "answer": texts[place - 1],
            "facts": [texts[place % 5]], texts[0]: texts[1], "__proto__": NAMES[place % len(NAMES)],
        }
        for place, (known, text) in enumerate(zip(example_ids, texts, strict=True))
    ]  # fmt: skip
    queries = [_query(place, query, texts) for place, query in enumerate(QUERY_IDS)]
    learning = np.zeros((len(texts), len(QUERY_IDS)), np.float32)
    order = np.linspace(1, -1, len(texts))
    learning[:, 0], learning[:, 1], learning[:, 2], learning[:, 3] = order, -order, 0.5, np.nan
    learning[:, 4:] = np.random.default_rng(0).normal(size=(len(texts), len(QUERY_IDS) - 4))
    learning[3, 5], learning[4, 5], learning[5, 5] = np.inf, -np.inf, np.nan
    scores = {Sum("learning"): learning, Sum(KIND): -learning}
    parts = ("constructor", texts[0])
    scores |= {Sum("learning", AXIS, part): learning / 2 for part in parts}  # and not of the other kind
    return ScoreStore.write(
        folder, example_ids, np.array(QUERY_IDS, np.int64), scores, _manifest(texts), ledger=_ledger(), names=names,
        examples=Texts.of(examples, EXAMPLE_ID), queries=Texts.of(queries, QUERY_ID),
    )  # fmt: skip


def _query(place: int, query: int, texts: list[str]) -> dict[str, Any]:
    return {
        QUERY_ID: query, "text": texts[place], "answer": texts[place + 8], "answers": texts[place : place + 3],
        "said": texts[place + 16], "fact": texts[place % 5], "relation": texts[place % 2],
        **dict.fromkeys(FACETS, NAMES[place % 2]),
    }  # fmt: skip


def _manifest(texts: list[str]) -> dict[str, Any]:
    return {
        "method": texts[0], "__proto__": {"constructor": texts[1]}, texts[2]: texts[3],
        "options": {"__proto__": texts[4]}, "versions": {texts[0]: texts[1]},
        "doubts": {"learning": [texts[0], texts[1]]},
        "ledger": {"balanced": False, "worst_imbalance": 0.5, "summary": texts[0]},
    }  # fmt: skip


def _ledger() -> Ledger:
    columns = dict.fromkeys(COLUMNS, np.zeros((2, len(QUERY_IDS))))
    columns |= {"loss": np.full((2, len(QUERY_IDS)), [[3.0], [2.0]]), "next_loss": np.full((2, len(QUERY_IDS)), 2.0)}
    columns["next_loss"][:, 1] = np.nan
    return Ledger(np.array([0, 5]), np.array([5, 9]), np.array(QUERY_IDS, np.int64), columns)
