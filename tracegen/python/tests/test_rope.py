# SPDX-License-Identifier: Apache-2.0
"""The rotary embedding in the metadata is the one that the model used, or it is omitted."""

import json
import unittest

import torch

import support
from kvspan_capture import capture
from kvspan_capture.rope import inverse_frequencies

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
SCALINGS = {
    "linear": dict(rope_type="linear", factor=4.0),
    "llama3": dict(LLAMA3, original_max_position_embeddings=64),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
}


class RotaryEmbedding(support.CaptureTest):
    def metadata(self, model, layers=None):
        with (
            torch.no_grad(),
            capture(
                model, self.path, tokens=200, prompt_tokens=200, dtype="f32", layers=layers
            ) as trace,
        ):
            model(support.ids(200))
        return support.read(self.path)[0], trace.notes

    def scaled(self, scaling):
        if hasattr(support.tiny("llama").config, "rope_parameters"):
            return support.model_of("Llama", rope_parameters={"rope_theta": 500.0, **scaling})
        return support.model_of("Llama", rope_theta=500.0, rope_scaling=dict(scaling))

    def test_scalings(self):
        for name, scaling in SCALINGS.items():
            with self.subTest(name):
                model = self.scaled(scaling)
                metadata, notes = self.metadata(model)
                self.assertEqual(notes, [])
                written = json.loads(metadata["rope_scaling"])
                self.assertEqual(written["rope_type"], name)
                ours = inverse_frequencies(float(metadata["rope_theta"]), 16, written)
                self.assert_close(ours, model.model.rotary_emb.inv_freq, 1e-6)

    def test_layouts(self):
        for family, layout, dim, settings in (
            ("Cohere", "interleaved", 16, {}),
            ("StableLm", "half", 4, {"hidden_size": 64}),
        ):
            with self.subTest(family):
                metadata, notes = self.metadata(support.model_of(family, **settings))
                self.assertEqual(notes, [])
                self.assertEqual(metadata["rope_layout"], layout)
                self.assertEqual(metadata["rope_dim"], str(dim))

    def test_what_the_configuration_does_not_explain_is_omitted(self):
        model = support.tiny("llama")
        model.model.rotary_emb.inv_freq *= 1.1
        metadata, notes = self.metadata(model)
        self.assertNotIn("rope_theta", metadata)
        self.assertRegex(notes[0], "omitted: the configuration does not explain")
        metadata, notes = self.metadata(self.scaled({"rope_type": "dynamic", "factor": 2.0}))
        self.assertNotIn("rope_theta", metadata)
        self.assertRegex(notes[0], "rope_type 'dynamic'; expected one of default")

    def test_layers_of_different_kinds(self):
        model = support.model_of(
            "Gemma3",
            config="Gemma3TextConfig",
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            sliding_window=9,
        )
        metadata, notes = self.metadata(model)
        self.assertNotIn("rope_theta", metadata)
        self.assertRegex(notes[0], "differs among the layers")
        metadata, notes = self.metadata(model, layers=[0, 2])
        self.assertEqual((metadata["rope_theta"], notes), ("10000.0", []))
        self.assertEqual(metadata["sliding_window"], "[9, 9]")


if __name__ == "__main__":
    unittest.main()
