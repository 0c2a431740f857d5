# SPDX-License-Identifier: Apache-2.0
"""The program reads what the capture wrote, and captures the same. Needs kvspan: $KVSPAN, or a
build folder of this tree; skipped without."""

import contextlib
import io
import json
import unittest

import torch
import transformers

import support
import test_tokens
from kvspan_capture import __main__ as command
from kvspan_capture import capture


class Program(support.CaptureTest):
    def kvspan(self, *arguments):
        done = support.run_kvspan(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_it_accepts_and_replays_every_trace(self):
        for name in support.MODELS:
            for options in ({}, {"emit": "scores", "top_k": 8, "column_mass": [24, 48]}):
                with self.subTest(model=name, **options):
                    model = support.tiny(name)
                    # A trace that ended early is cut to what arrived.
                    with (
                        torch.no_grad(),
                        capture(model, self.path, tokens=99, prompt_tokens=48, **options),
                    ):
                        model(support.ids(64))
                    self.assertIn("64 tokens of which 48", self.kvspan("trace", "check", self.path))
                    out = self.folder / "result.json"
                    self.kvspan(
                        *("run", self.path, "--out", out, "--chunk", 24),
                        *("--policy", "full", "--policy", "h2o(budget=24)"),
                    )
                    full, h2o = json.loads(out.read_text())["runs"]
                    self.assertEqual(full["footprint"], 1.0)
                    self.assertLess(h2o["footprint"], 1.0)

    def test_it_says_that_a_latent_cache_is_smaller(self):
        model = support.latent()
        with torch.no_grad(), capture(model, self.path, tokens=24, prompt_tokens=24):
            model(support.ids(24))
        run = self.kvspan("run", self.path, "--policy", "full", "--no-chart")
        said = " ".join(run.split())
        self.assertIn(
            "320 elements a token in 2 layers; the model's own cache holds 80, 25 %", said
        )

    def test_its_own_capture_of_the_same_weights_is_equal(self):
        if "unknown command" in support.run_kvspan("capture").stderr:
            self.skipTest("this kvspan has no command 'capture'")
        for name in ("llama", "qwen3", "mistral"):
            with self.subTest(name):
                model, ids = support.tiny(name), support.ids(40)
                folder = self.folder / name
                model.save_pretrained(folder)
                (folder / "ids.txt").write_text(" ".join(map(str, ids[0].tolist())))
                with (
                    torch.no_grad(),
                    capture(model, self.path, tokens=40, prompt_tokens=40, dtype="f32"),
                ):
                    model(ids)
                theirs = folder / "theirs.safetensors"
                self.kvspan(
                    *("capture", "--model", folder, "--tokens", folder / "ids.txt"),
                    *("--prompt", 40, "--generate", 0, "--dtype", "f32", "--out", theirs),
                )
                (ours_said, ours), (theirs_said, theirs) = map(support.read, (self.path, theirs))
                for key in ("query_heads", "kv_heads", "head_dim", "rope_layout"):
                    self.assertEqual(ours_said[key], theirs_said[key])
                windows = (
                    json.loads(x.get("sliding_window", "0")) for x in (ours_said, theirs_said)
                )
                self.assertEqual(*windows)
                for key in ("rope_theta", "score_scale"):
                    self.assertAlmostEqual(float(ours_said[key]), float(theirs_said[key]))
                for tensor in (f"layers.{i}.{kind}" for i in range(3) for kind in "qkv"):
                    self.assert_close(ours[tensor], theirs[tensor], 5e-5)
                self.assert_close(ours["nll"], theirs["nll"], 1e-4)


class CommandLine(support.CaptureTest):
    def setUp(self):
        super().setUp()
        self.model = self.folder / "model"
        support.model_of("Llama", vocab_size=400, eos_token_id=7).save_pretrained(self.model)
        test_tokens.byte_level().save_pretrained(self.model)
        self.text = self.folder / "text.txt"
        self.text.write_text("So it goes, so it ends. " * 8)

    def run_command(self, *arguments):
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = command.main(
                [
                    *("--model", str(self.model), "--text", str(self.text)),
                    *("--out", str(self.path), *map(str, arguments)),
                ]
            )
        return code, out.getvalue(), errors.getvalue()

    def test_generation_is_that_of_transformers(self):
        code, out, _ = self.run_command("--prompt", 20, "--generate", 9, "--chunk", 8, "--bos", 0)
        self.assertEqual(code, 0)
        metadata, tensors = support.read(self.path)
        self.assertRegex(out, r"tokens, .* MiB, mean nll \d+\.\d{4}, perplexity")
        self.assertEqual(tensors["token_text"].tobytes()[:13], b"<s>So it goes")
        model = transformers.AutoModelForCausalLM.from_pretrained(self.model)
        ids = torch.from_numpy(tensors["token_ids"].astype("int64"))[None]
        prompt = dict(input_ids=ids[:, :20], attention_mask=torch.ones(1, 20, dtype=torch.long))
        answer = model.generate(**prompt, max_new_tokens=9, do_sample=False)[0].tolist()
        stopped = answer[-1] == 7
        self.assertEqual(ids[0].tolist(), answer[:-1] if stopped else answer)
        self.assertEqual(metadata["prompt_tokens"], "20")

    def test_forced_text_and_scores(self):
        code, _, _ = self.run_command(
            *("--generate", 5, "--teacher", "--chunk", 8, "--emit", "scores", "--keys", 6),
            *("--column-mass", "--layers", "0,2", "--span", "a=1:4", "--span", "b=2:3"),
        )
        self.assertEqual(code, 0)
        metadata, tensors = support.read(self.path)
        text = tensors["token_text"].tobytes().decode()
        self.assertEqual(text, self.text.read_text())
        tokens = int(metadata["tokens"])
        self.assertEqual(int(metadata["prompt_tokens"]), tokens - 5)
        passes = [*range(8, tokens - 5, 8), tokens - 5]
        self.assertEqual(json.loads(metadata["passes"]), passes)
        self.assertEqual(tensors["layers.1.scores.column_mass"].shape, (len(passes), 4, tokens))
        self.assertEqual(tensors["layers.0.scores.prob"].shape[-1], 6)
        self.assertEqual(len(json.loads(metadata["spans"])), 2)
        code, _, _ = self.run_command(  # the older names
            *("--generate", 5, "--teacher-forced", "--emit", "scores", "--top-k", 6),
            *("--spans", "a=1:4", "b=2:3"),
        )
        self.assertEqual(code, 0)
        self.assertEqual(len(json.loads(support.read(self.path)[0]["spans"])), 2)

    def test_a_model_that_misses_its_bos_stops(self):
        models = sorted(support.ROOT.glob("build/*/models/minimind2-small"))
        if not models:
            self.skipTest("no minimind2-small: build kvspan")
        text = support.ROOT / "traces/texts/sherlock-excerpt.txt"
        common = ("--model", str(models[0]), "--text", str(text), "--prompt", 64)
        code, _, errors = self.run_command(*common)
        self.assertEqual(code, 3)
        self.assertRegex(errors, r"worse than guessing: a mean nll of 13\..* expected --bos 1, or")
        for bos in ("none", 1):
            self.assertEqual(self.run_command(*common, "--bos", bos)[0], 0)

    def test_errors_are_one_line(self):
        for pattern, arguments in (
            (r"\d+ tokens; expected --prompt of 1 to", ("--prompt", 9999)),
            ("--bos is 'yes'", ("--bos", "yes")),
            ("--compute is 'double_float'", ("--compute", "double_float")),
            ("layers are", ("--layers", "9")),
            ("No such file", ("--text", self.folder / "none")),
            ("no folder", ("--out", self.folder / "none" / "x")),
            ("none", ("--model", self.folder / "none")),
        ):
            with self.subTest(pattern):
                code, _, errors = self.run_command(*arguments)
                self.assertEqual(code, 3)
                last = errors.splitlines()[-1]
                self.assertRegex(last, pattern)
                self.assertTrue(last.startswith("kvspan_capture: "))
                self.assertFalse(self.path.exists())


if __name__ == "__main__":
    unittest.main()
