# SPDX-License-Identifier: Apache-2.0
"""What cannot be captured truly is refused in one line, and leaves no file."""

import resource
import unittest

import torch
import transformers

import support
from kvspan_capture import CaptureError, capture


class Refusals(support.CaptureTest):
    def refused(self, pattern, model, run, **options):
        options = {"tokens": 32, "prompt_tokens": 8, **options}
        with self.assertRaisesRegex(CaptureError, pattern) as error, torch.no_grad():
            with capture(model, self.path, **options):
                run(model)
        self.assertNotIn("\n", str(error.exception))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_options(self):
        model = support.tiny("llama")
        for pattern, options in (
            ("tokens is 0; expected at least 1", {"tokens": 0}),
            ("prompt_tokens is 33; expected at most 32", {"prompt_tokens": 33}),
            ("emit is 'all'; expected 'qkv' or 'scores'", {"emit": "all"}),
            ("dtype of qkv is 'f8'; expected f16 or bf16 or f32", {"dtype": "f8"}),
            ("dtype of scores is 'bf16'", {"emit": "scores", "dtype": "bf16"}),
            ("column_mass with emit='qkv'", {"column_mass": [8]}),
            (r"column_mass is \[4, 7\].* up to 8", {"emit": "scores", "column_mass": [4, 7]}),
            (r"layers are \[3\]; expected some of \[0, 1, 2\]", {"layers": [3]}),
            (r"span 'x' is \[4, 4\)", {"spans": [("x", 4, 4)]}),
            ("metadata .'rope_theta'.; expected keys among", {"metadata": {"rope_theta": "1"}}),
        ):
            with self.subTest(pattern):
                self.refused(pattern, model, lambda m: m(support.ids(8)), **options)

    def test_sequences(self):
        model = support.tiny("llama")

        def twice(model):
            model(support.ids(8))
            model(support.ids(8))

        def without_cache(model):
            model.generate(support.ids(8), max_new_tokens=3, use_cache=False)

        def static(model):
            model.generate(support.ids(8), max_new_tokens=3, cache_implementation="static")

        def filled(model):
            model(support.ids(4), past_key_values=cache, use_cache=True)

        cache = model(support.ids(8), use_cache=True).past_key_values
        padding = torch.ones(1, 8, dtype=torch.long)
        padding[0, :3] = 0
        for pattern, run in (
            ("a batch of 2 sequences; expected one", lambda m: m(support.ids(16).view(2, 8))),
            (r"rows \[0, 33\): more than the 32 tokens", lambda m: m(support.ids(33))),
            (r"rows \[8, 16\): 8 keys; expected 16", twice),
            (r"rows \[8, 17\): 9 keys; expected 17", without_cache),
            (r"rows \[0, 8\): \d+ keys; expected 8", static),
            (r"rows \[0, 4\): 12 keys; expected 4", filled),
            ("recomputed .* differs", lambda m: m(support.ids(8), attention_mask=padding)),
            ("7 rows arrived; expected 8, the prompt", lambda m: m(support.ids(7))),
            ("the model did not run", lambda m: None),
        ):
            with self.subTest(pattern):
                self.refused(pattern, model, run)

    def test_attention_that_a_trace_cannot_say(self):
        run = lambda model: model(support.ids(20))
        for name in ("gemma2", "gpt_oss"):  # sdpa drops the soft cap, and the sinks
            with self.subTest(name):
                model = support.tiny(name)
                model.config._attn_implementation = "sdpa"
                # transformers 5.24 refuses sdpa with a soft cap by itself.
                both = "recomputed from q, k and v differs|does not support `softcap`"
                with self.assertRaisesRegex((CaptureError, ValueError), both):
                    with torch.no_grad(), capture(model, self.path, tokens=32, prompt_tokens=8):
                        run(model)
                self.assertFalse(self.path.exists())
        with self.subTest("two attentions in a layer"):
            config = transformers.DiffLlamaConfig(
                vocab_size=97,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
            model = transformers.DiffLlamaForCausalLM(config).float().eval()
            self.refused("layer 0: two attentions in one pass; expected one", model, run)
        with self.subTest("a mask of the user's own"):
            mask = torch.zeros(1, 1, 20, 20)  # bidirectional
            model = support.tiny("llama")
            self.refused("differs", model, lambda m: m(support.ids(20), attention_mask=mask))
        with self.subTest("values beyond f16"):
            model = support.tiny("llama")
            model.model.layers[1].self_attn.v_proj.weight.data *= 1e6
            self.refused(
                r"layer 1: v holds [\d.e+]+; expected finite values of f16; dtype='bf16'",
                model,
                run,
            )
        with self.subTest("values that are no numbers"):
            model = support.tiny("llama")
            model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = torch.nan
            self.refused("differs from the model's by nan", model, run)

    def test_models(self):
        config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=2)
        with self.assertRaisesRegex(CaptureError, "BloomForCausalLM: no attention that goes"):
            capture(transformers.BloomForCausalLM(config), self.path, tokens=8, prompt_tokens=8)
        config = transformers.BartConfig(
            vocab_size=97,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
        )
        with self.assertRaisesRegex(CaptureError, "expected a decoder-only model|no attention"):
            capture(transformers.BartModel(config), self.path, tokens=8, prompt_tokens=8)

    def test_an_interrupted_capture_leaves_what_was_there(self):
        model = support.tiny("llama")
        self.path.write_text("an older trace")
        for error in (KeyboardInterrupt, RuntimeError):
            with self.assertRaises(error), capture(model, self.path, tokens=32, prompt_tokens=8):
                model(support.ids(8))
                self.assertEqual(len(list(self.folder.iterdir())), 2)
                raise error
            self.assertEqual(self.path.read_text(), "an older trace")
            self.assertEqual(list(self.folder.iterdir()), [self.path])

    def test_a_full_disk_is_found_at_the_first_row(self):
        model = support.tiny("llama")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        with self.assertRaises(OSError), torch.no_grad():
            with capture(model, self.path, tokens=1 << 20, prompt_tokens=8):
                model(support.ids(8))
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
