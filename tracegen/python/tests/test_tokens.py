# SPDX-License-Identifier: Apache-2.0
"""Token text is the text."""

import json
import unittest

import numpy as np
import tokenizers
import torch
import transformers

import support
from kvspan_capture import capture
from kvspan_capture.tokens import token_pieces

TEXT = "So it goes: na\u00efve \u4f60\u597d  \U0001f600\n\tend <0x0A> \u0120."


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with all bytes, so that pieces of it cut characters."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["So it goes, so it ends."], 300, special_tokens=["<s>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>"
    )


def sentencepiece() -> transformers.PreTrainedTokenizerFast:
    """BPE in the manner of sentencepiece, with a fallback to bytes."""
    words = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += sorted({*TEXT.replace(" ", "\u2581")} - {"\U0001f600"})
    model = tokenizers.models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True)
    built = tokenizers.Tokenizer(model)
    built.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    built.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>")


class TokenText(support.CaptureTest):
    def test_pieces_put_together_are_the_text(self):
        text = TEXT.replace("<0x0A>", "")  # which no tokenizer of bytes can tell from its byte
        for make in (byte_level, sentencepiece):
            with self.subTest(make.__name__):
                tokenizer = make()
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                pieces = token_pieces(tokenizer, [0, *ids, 10**6])
                self.assertEqual(b"".join(pieces[1:-1]).decode(), text)
                self.assertEqual((pieces[0], pieces[-1]), (b"<s>", b""))
                self.assertGreater(len(pieces), len(text))  # some pieces are single bytes

    def test_a_trace_holds_text_ids_and_special_ids(self):
        tokenizer = byte_level()
        ids = tokenizer("<s>So it goes", return_tensors="pt")["input_ids"]
        model = support.model_of("Llama", vocab_size=400)
        count = ids.shape[1]
        with (
            torch.no_grad(),
            capture(model, self.path, tokens=99, prompt_tokens=count, tokenizer=tokenizer),
        ):
            model(ids)
        metadata, tensors = support.read(self.path)
        self.assertEqual(tensors["token_text"].tobytes(), b"<s>So it goes")
        self.assertEqual(len(tensors["token_text_offsets"]), count + 1)
        np.testing.assert_array_equal(tensors["token_ids"], ids[0])
        self.assertEqual(json.loads(metadata["special_ids"]), [0])

    def test_without_ids_there_is_no_text(self):
        model = support.tiny("llama")
        with (
            torch.no_grad(),
            capture(model, self.path, tokens=9, prompt_tokens=9, tokenizer=byte_level()) as trace,
        ):
            model(inputs_embeds=torch.randn(1, 9, 48))
        self.assertTrue({"token_ids", "nll", "token_text"}.isdisjoint(support.read(self.path)[1]))
        self.assertRegex(trace.notes[0], "token_ids is omitted")


if __name__ == "__main__":
    unittest.main()
