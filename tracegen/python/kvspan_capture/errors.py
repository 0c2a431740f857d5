# SPDX-License-Identifier: Apache-2.0
"""The one error of the package."""


class CaptureError(RuntimeError):
    """A capture that cannot be made, or would not be true; one line: found, expected, what to do."""
