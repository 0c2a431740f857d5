# SPDX-License-Identifier: Apache-2.0
"""What a capture writes is what the model computed."""

import json
import unittest
import unittest.mock

import numpy as np
import torch
import transformers

import support
from kvspan_capture import capture, trace_capture


class Qkv(support.CaptureTest):
    def test_one_pass_of_every_model_equals_its_own_attention(self):
        for name, (_, _, expected) in support.MODELS.items():
            for attention in ("eager", "sdpa"):
                if attention == "sdpa" and name in ("gemma2", "gpt_oss"):
                    continue  # their sdpa ignores softcap and sinks: test_refusals.py
                with self.subTest(model=name, attention=attention):
                    self._one_pass(name, attention, expected)

    def _one_pass(self, name, attention, expected):
        model, ids = support.tiny(name, attention), support.ids(40)
        reference = support.Reference(model)
        with torch.no_grad(), capture(model, self.path, tokens=40, prompt_tokens=30, dtype="f32"):
            model(ids)
        reference.close()
        metadata, tensors = support.read(self.path)
        self.assertEqual(metadata, {**metadata, **expected})
        self.assertEqual((metadata["tokens"], metadata["prompt_tokens"]), ("40", "30"))
        self.assertIn("rope_theta", metadata)
        model.config._attn_implementation = "eager"
        with torch.no_grad():
            output = model(ids, output_attentions=True)
        for layer, qkv in reference.qkv.items():
            for kind, rows in zip("qkv", qkv):
                self.assert_close(tensors[f"layers.{layer}.{kind}"], rows, 1e-6)
            theirs = output.attentions[layer][0].numpy()
            self.assertGreater(theirs[:, 20:].max(), 0.15)  # not flat: 1 of 7 keys or more has 0.14
            self.assert_close(support.attention_of(metadata, tensors, layer), theirs, 1e-4)
        nll = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:], reduction="none")
        self.assert_close(tensors["nll"], [*nll, 0], 1e-5)
        np.testing.assert_array_equal(tensors["token_ids"], ids[0])

    def test_generation_as_the_readme_has_it_gives_n_plus_m_tokens(self):
        model, prompt = support.tiny("llama"), support.ids(20)
        for more in (1, 0):
            with capture(model, self.path, tokens=25, prompt_tokens=20) as trace:
                model.generate(prompt, max_new_tokens=5 + more, do_sample=False)
            self.assertEqual(trace.tokens, 24 + more)
            short = [note for note in trace.notes if "max_new_tokens=m + 1" in note]
            self.assertEqual(len(short), 1 - more)

    def test_the_older_name_of_keys_still_works(self):
        model = support.tiny("llama")
        said = dict(tokens=9, prompt_tokens=9, emit="scores")
        for options in ({"keys": 3}, {"top_k": 3}):
            with torch.no_grad(), capture(model, self.path, **said, **options):
                model(support.ids(9))
            _, tensors = support.read(self.path)
            self.assertEqual(tensors["layers.0.scores.prob"].shape[-1], 3)

    def test_a_latent_cache_is_told(self):
        # K and V were stored as attention reads them, and bytes of a replay were 4 times the
        # model's own (71 times for DeepSeek-V3), without a word.
        model = support.latent()
        for use_cache in (True, False):
            with (
                torch.no_grad(),
                capture(model, self.path, tokens=24, prompt_tokens=24) as trace,
            ):
                out = model(support.ids(24), use_cache=use_cache)
            metadata, tensors = support.read(self.path)
            self.assertEqual(metadata["cache_elements"], "40")  # of 4 heads of 24 and 16: 160
            self.assertEqual(tensors["layers.0.k"].shape[1:], (4, 24))
            told = [note for note in trace.notes if "own cache holds 40 elements" in note]
            self.assertEqual(len(told), 1)
            if use_cache:
                layers = out.past_key_values.layers
                held = sum(one.keys.numel() + one.values.numel() for one in layers)
                self.assertEqual(held, 40 * 24 * 2)
        model = support.tiny("llama")
        with torch.no_grad(), capture(model, self.path, tokens=9, prompt_tokens=9):
            model(support.ids(9))
        self.assertNotIn("cache_elements", support.read(self.path)[0])

    def test_layers_that_read_the_entries_of_others_are_told(self):
        config = transformers.Gemma3nTextConfig(
            vocab_size=400,
            vocab_size_per_layer_input=400,
            hidden_size=32,
            hidden_size_per_layer_input=8,
            intermediate_size=48,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            laurel_rank=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=16,
            activation_sparsity_pattern=[0.0] * 4,
        )
        torch.manual_seed(0)
        model = transformers.Gemma3nForCausalLM(config).float().eval()
        with torch.no_grad(), capture(model, self.path, tokens=24, prompt_tokens=24) as trace:
            model(support.ids(24))
        self.assertEqual(support.read(self.path)[0]["cache_elements"], "[32, 32, 0, 0]")
        self.assertTrue(any("own cache holds 0 to 32 elements" in note for note in trace.notes))

    def test_passes_of_a_chunked_prompt_and_generation_equal_one_pass(self):
        for name in support.MODELS:
            with self.subTest(model=name):
                self._passes(name)

    def _passes(self, name):
        model = support.tiny(name)
        prompt = support.ids(20)
        with capture(model, self.path, tokens=64, prompt_tokens=20, dtype="f32") as trace:
            answer = model.generate(prompt, max_new_tokens=11, do_sample=False)
        self.assertEqual(trace.tokens, 30)  # the last token that is generated is never read
        self.assertTrue(any("nll is omitted" in note for note in trace.notes))
        _, generated = support.read(self.path)

        with torch.no_grad(), capture(model, self.path, tokens=30, prompt_tokens=20, dtype="f32"):
            cache = None
            for begin, end in ((0, 8), (8, 9), (9, 20), (20, 30)):
                passed = model(answer[:, begin:end], past_key_values=cache, use_cache=True)
                cache = passed.past_key_values
        _, chunked = support.read(self.path)

        with torch.no_grad(), capture(model, self.path, tokens=30, prompt_tokens=20, dtype="f32"):
            model(answer[:, :30])
        _, whole = support.read(self.path)
        self.assertEqual(set(whole) - set(generated), {"nll"})
        for tensor, values in whole.items():
            self.assert_close(chunked[tensor], values, 1e-4)
            if tensor != "nll":
                self.assert_close(generated[tensor], values, 1e-4)

    def test_layers_types_and_spans_are_what_was_asked_for(self):
        model, ids = support.tiny("llama"), support.ids(12)
        spans = [("needle", 2, 5), ("tail", 10, 15), ("beyond", 12, 14)]
        traces = {}
        for dtype in ("f32", "f16", "bf16"):
            with (
                torch.no_grad(),
                capture(
                    model,
                    self.path,
                    tokens=15,
                    prompt_tokens=9,
                    layers=[2, 0],
                    dtype=dtype,
                    spans=spans,
                    metadata={"licence": "none"},
                ) as trace,
            ):
                model(ids)
            metadata, traces[dtype] = support.read(self.path)
        self.assertEqual(metadata["layer_ids"], "[0, 2]")
        self.assertEqual((metadata["layers"], metadata["model_layers"]), ("2", "3"))
        self.assertEqual(metadata["licence"], "none")
        kept = [(s["name"], s["begin"], s["end"]) for s in json.loads(metadata["spans"])]
        self.assertEqual(kept, [("needle", 2, 5), ("tail", 10, 12)])
        self.assertEqual(
            trace.notes,
            [
                "12 of the 15 tokens announced arrived",
                "span 'beyond' is omitted: it begins at 12 of 12",
            ],
        )
        exact = traces["f32"]["layers.1.k"]
        np.testing.assert_array_equal(traces["f16"]["layers.1.k"], exact.astype(np.float16))
        brain = torch.from_numpy(exact.copy()).bfloat16().view(torch.int16).numpy()
        np.testing.assert_array_equal(traces["bf16"]["layers.1.k"].view(np.int16), brain)

    def test_a_model_in_bfloat16_is_captured_bit_for_bit(self):
        model, ids = support.tiny("qwen3", "sdpa").bfloat16(), support.ids(40)
        cache = transformers.DynamicCache()
        with capture(model, self.path, tokens=40, prompt_tokens=40, dtype="bf16"):
            model(ids, past_key_values=cache, use_cache=True)
        keys = cache.layers[1].keys if hasattr(cache, "layers") else cache.key_cache[1]
        seen = keys[0].transpose(0, 1).contiguous().view(torch.int16).numpy()
        _, tensors = support.read(self.path)
        np.testing.assert_array_equal(tensors["layers.1.k"].view(np.int16), seen)


class Scores(support.CaptureTest):
    def test_rows_equal_those_of_the_qkv_trace(self):
        for name in support.MODELS:
            for top_k in (5, 64):  # fewer than the keys, and more
                with self.subTest(model=name, top_k=top_k):
                    self._scores(name, top_k)

    def _scores(self, name, top_k):
        model, ids = support.tiny(name), support.ids(30)

        def passes():
            cache = None
            for begin, end in ((0, 7), (7, 20), (20, 29), (29, 30)):
                with torch.no_grad():
                    output = model(ids[:, begin:end], past_key_values=cache, use_cache=True)
                cache = output.past_key_values

        with capture(model, self.path, tokens=30, prompt_tokens=20, dtype="f32"):
            passes()
        metadata, tensors = support.read(self.path)
        with capture(
            model,
            self.path,
            tokens=40,
            prompt_tokens=20,
            emit="scores",
            dtype="f32",
            top_k=top_k,
            column_mass=[10, 20],
        ):
            passes()
        described, scores = support.read(self.path)
        self.assertEqual(described["passes"], "[10, 20]")
        kept = min(top_k, 40)
        for i in range(3):
            expected = support.attention_of(metadata, tensors, i).transpose(1, 0, 2)
            prefix = f"layers.{i}.scores."
            np.testing.assert_array_equal(scores[prefix + "rows"], np.arange(30))
            prob, index = scores[prefix + "prob"], scores[prefix + "index"]
            self.assertEqual(prob.shape, (30, 4, kept))
            padded = np.pad(expected, ((0, 0), (0, 0), (0, 40)))
            largest = -np.sort(-padded, -1)[..., :kept]
            self.assert_close(prob, largest, 2e-5)
            self.assert_close(np.take_along_axis(padded, index, -1), largest, 2e-5)
            np.testing.assert_array_equal(index == -1, prob == 0)  # pads; 1e-40 may be one
            np.testing.assert_array_equal(prob[largest > 1e-37] > 0, True)
            # exp(logit - lse) is the probability: lse follows from any key and its logit.
            q, k = tensors[f"layers.{i}.q"], tensors[f"layers.{i}.k"]
            logit = np.einsum("ihd,ihd->ih", q, np.repeat(k, 2, 1)) * float(metadata["score_scale"])
            if "logit_softcap" in metadata:
                cap = float(metadata["logit_softcap"])
                logit = cap * np.tanh(logit / cap)
            own = expected[np.arange(30), :, np.arange(30)]
            sure = own > 1e-6
            self.assert_close(scores[prefix + "lse"][sure], (logit - np.log(own))[sure], 1e-4)
            mass = np.stack([expected[:10].sum(0), expected[10:20].sum(0)])
            self.assert_close(scores[prefix + "column_mass"], mass, 2e-5)

    def test_blocks_of_rows_do_not_show(self):
        model, ids = support.tiny("gpt_oss"), support.ids(30)
        options = dict(emit="scores", dtype="f32", top_k=9, column_mass=[6, 30])
        traces = []
        for size in (1 << 26, 4 * 4 * 30 * 4):  # all rows at once, four
            with unittest.mock.patch.object(trace_capture, "_SCORE_BLOCK_BYTES", size):
                with (
                    torch.no_grad(),
                    capture(model, self.path, tokens=30, prompt_tokens=30, **options),
                ):
                    model(ids)
            traces.append(support.read(self.path)[1])
        for name, values in traces[0].items():
            self.assert_close(traces[1][name], values, 1e-6)


class Hooks(support.CaptureTest):
    def test_other_models_pass_through_and_nothing_stays_changed(self):
        model, other = support.tiny("llama", "sdpa"), support.tiny("llama")
        ids = support.ids(10)
        names = vars(__import__(type(model).__module__, fromlist=["x"]))
        watched = ("ALL_ATTENTION_FUNCTIONS", "eager_attention_forward", "apply_rotary_pos_emb")
        before = {name: names[name] for name in watched}
        with torch.no_grad(), capture(model, self.path, tokens=10, prompt_tokens=10, dtype="f32"):
            model(ids)
            other(support.ids(17, seed=1))  # more than is announced for `model`
        self.assertEqual({name: names[name] for name in watched}, before)
        self.assertEqual(support.read(self.path)[0]["tokens"], "10")

    def test_captures_of_two_models_may_be_nested(self):
        one, two = support.tiny("llama"), support.tiny("llama", "sdpa")
        second = self.folder / "second.safetensors"
        options = dict(prompt_tokens=9, dtype="f32")
        with torch.no_grad(), capture(one, self.path, tokens=9, **options):
            with capture(two, second, tokens=12, **options):
                one(support.ids(9))
                two(support.ids(12))
        first, second = support.read(self.path)[1], support.read(second)[1]
        self.assert_close(first["layers.2.q"], second["layers.2.q"][:9], 1e-4)


if __name__ == "__main__":
    unittest.main()
