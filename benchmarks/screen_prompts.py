"""Prompts about well-known facts that SmolLM2-135M-Instruct completes rightly, by which estimates are compared."""

from __future__ import annotations

from ftrace.data import FactPrompt

SIGMA = 0.1157
"""The unit of their noise: the standard deviation of such subjects' embeddings in SmolLM2-135M-Instruct."""

# A name, which the noise is drawn by; the text; the subject in it; the first word of the answer.
_ROWS = """
p0|The capital of France is|France|Paris
p1|The capital of Japan is|Japan|Tokyo
p2|The capital of Italy is the city of|Italy|Rome
p3|The capital of Germany is|Germany|Berlin
p4|The capital of Spain is|Spain|Madrid
p5|The capital city of Russia is|Russia|Moscow
p7|The capital of Canada is|Canada|Ottawa
p9|The capital of Greece is|Greece|Athens
p10|The capital of Portugal is the city of|Portugal|Lisbon
p11|The capital of Thailand is|Thailand|Bangkok
p12|The capital of South Korea is|South Korea|Seoul
p13|The capital of the United Kingdom is|the United Kingdom|London
p19|Machu Picchu is located in the country of|Machu Picchu|Peru
p30|Romeo and Juliet was written by William|Romeo and Juliet|Shakespeare
p36|The Mona Lisa was painted by Leonardo da|The Mona Lisa|Vinci
p38|Apple was founded by Steve|Apple|Jobs
p40|The telephone was invented by Alexander Graham|The telephone|Bell
p44|The currency of Japan is the|Japan|yen
p45|The currency of the United Kingdom is the|the United Kingdom|pound
p52|Albert Einstein was born in the country of|Albert Einstein|Germany
p66|Silicon Valley is located in the state of|Silicon Valley|California
p74|Mumbai is a city in the country of|Mumbai|India
p76|Istanbul is a city in the country of|Istanbul|Turkey
p78|The Panama Canal connects the Atlantic Ocean and the|The Panama Canal|Pacific
"""


def known_facts() -> list[FactPrompt]:
    """Return the prompts."""
    rows = [line.split("|") for line in _ROWS.strip().splitlines()]
    return [FactPrompt(name, text, subject, (answer,)) for name, text, subject, answer in rows]
