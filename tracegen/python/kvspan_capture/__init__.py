# SPDX-License-Identifier: Apache-2.0
"""Streams the attention of a Hugging Face transformers model into a kvspan trace."""

from .trace_capture import Capture, capture
from .errors import CaptureError

__version__ = "0.1.0"
__all__ = ["Capture", "CaptureError", "capture"]
