#!/usr/bin/env python3
"""Writes yaml_merges.jsonl: YAML with anchors and merge keys, and what PyYAML's safe loader makes of it.

    pip install pyyaml==6.0.3
    python make_yaml_merges.py > yaml_merges.jsonl

Numbers such as 1e-4 are left out on purpose: PyYAML reads them as text, perfrun as numbers.
"""

import json
import random

import yaml

CASES = [
    # one source
    "base: &base\n  a: 1\n  b: 2\nx:\n  <<: *base\n  b: 3\n",
    # own keys before the merge
    "base: &base {a: 1, b: 2}\nx:\n  b: 3\n  <<: *base\n",
    # list of sources: the first wins
    "p: &p {a: 1, b: 1}\nq: &q {b: 2, c: 2}\nx:\n  <<: [*p, *q]\n",
    "p: &p {a: 1, b: 1}\nq: &q {b: 2, c: 2}\nx:\n  <<: [*q, *p]\n  c: 9\n",
    # two merge keys in one map: the later wins
    "p: &p {a: 1, b: 1}\nq: &q {b: 2, c: 2}\nx:\n  <<: *p\n  <<: *q\n",
    "p: &p {a: 1}\nq: &q {a: 2}\nr: &r {a: 3}\nx:\n  <<: [*p, *q]\n  <<: [*r, *q]\n",
    # merge of merge
    "a: &a {k: 1, l: 1, m: 1}\nb: &b\n  <<: *a\n  l: 2\nx:\n  <<: *b\n  m: 3\n",
    # an inherited block is replaced as a whole
    "base: &base\n  model: &bm {d: 1, e: 2}\n  t: {f: 3}\nx:\n  <<: *base\n  model: {d: 9}\n",
    # unless the block merges its own anchor
    "base: &base\n  model: &bm {d: 1, e: 2}\n  t: {f: 3}\nx:\n  <<: *base\n  model:\n    <<: *bm\n    d: 9\n",
    # the trap of large_model_high_res: the block that is merged in is not that of the source
    "base: &base\n  model: &bm {d: 768, l: 12}\nlarge: &large\n  <<: *base\n  model:\n    <<: *bm\n    l: 24\n"
    "res: &res\n  <<: *base\n  model:\n    <<: *bm\n    g: [720, 1440]\nx:\n  <<: *large\n  <<: *res\n"
    "  model:\n    <<: *bm\n    g: [720, 1440]\n",
    # inline maps, nested lists, lists of maps with merges inside
    "x:\n  <<: {a: 1, b: [1, 2, {c: 3}]}\n  d: 4\n",
    "p: &p {a: 1}\nx:\n  list:\n    - <<: *p\n      b: 2\n    - *p\n",
    "p: &p {a: 1}\nq: &q\n  <<: [*p, {a: 2, b: 2}]\nx:\n  <<: [{b: 5}, *q]\n",
    # aliases that are no merges
    "grid: &grid [64, 128]\nx: {img_size: *grid, again: *grid}\n",
    "s: &s word\nx: {name: *s}\n",
    # empty sources
    "x:\n  <<: {}\n  a: 1\n",
    "x:\n  <<: []\n  a: 1\n",
]


def random_case(rng):
    """A chain of maps, each merging some of those before it, some of them twice or in a list."""
    keys = "abcdef"
    lines = []
    names = []
    for i in range(rng.randint(2, 6)):
        name = f"m{i}"
        lines.append(f"{name}: &{name}")
        body = []
        for _ in range(rng.randint(0, 2) if names else 0):
            sources = rng.sample(names, rng.randint(1, len(names)))
            if len(sources) == 1 and rng.random() < 0.5:
                body.append(f"  <<: *{sources[0]}")
            else:
                body.append("  <<: [" + ", ".join("*" + s for s in sources) + "]")
        for key in rng.sample(keys, rng.randint(1, 3)):
            value = rng.choice([str(rng.randint(0, 9)), "true", "word", "[1, 2]", "{g: 1, h: 2}", "2.5"])
            body.append(f"  {key}: {value}")
        rng.shuffle(body)
        lines += body
        names.append(name)
    return "\n".join(lines) + "\n"


def main():
    rng = random.Random(0)
    for text in CASES + [random_case(rng) for _ in range(60)]:
        print(json.dumps({"yaml": text, "want": yaml.safe_load(text)}))


main()
