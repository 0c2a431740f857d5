#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the pass-key prompts of tests/data/smollm2-passkey.json as samples for `kvspan eval`.

usage: passkeys.py > passkeys.jsonl
"""
import json
import pathlib

DATA = pathlib.Path(__file__).resolve().parents[2] / "data" / "smollm2-passkey.json"

for prompt in json.loads(DATA.read_text(encoding="utf-8"))["prompts"]:
    # The texts hold the chat format already, so they are read as they are.
    print(json.dumps({"name": "key " + prompt["key"], "prompt": prompt["text"],
                      "answers": [prompt["key"]], "reference": prompt["key"], "generate": 20}))
