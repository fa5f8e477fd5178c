"""Colours of video for eyes and models that know 8-bit sRGB: PQ and HLG light is tone mapped, BT.2020 becomes BT.709.

Light is linear and relative: 1 is the white of paper, 203 candela per square metre (ITU-R BT.2408).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ and HLG
PAPER_NITS = 203.0
_WHITE = 1000.0 / PAPER_NITS  # what becomes white; HLG is made for displays of 1000 candela per square metre
_KNEE = 0.5  # light up to here stays as it is, what is above is rolled off
_CODES = 65536
_TO_709 = np.array(  # ITU-R BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
_LUMA_709 = np.array([0.2126, 0.7152, 0.0722], np.float32)


def is_unlike_srgb(trc: int, primaries: int) -> bool:
    """Whether frames with these tags need `to_srgb`."""
    return trc in HDR or primaries == ColorPrimaries.BT2020


def to_srgb(rgb_HW3: NDArray[np.uint16], trc: int, primaries: int) -> NDArray[np.uint8]:
    """Code values of full range in 16 bits -> sRGB.

    Colours of BT.709 darker than half of paper white come out as they are. Brighter ones keep their hue and are rolled
    off, so that 1000 candela per square metre are white; those outside of the gamut are paled until they fit.
    """
    light_HW3 = _light(trc)[rgb_HW3]
    if trc == ColorTrc.ARIB_STD_B67:  # the system gamma of ITU-R BT.2100: HLG stores the light of the scene
        light_HW3 *= np.maximum(light_HW3 @ _LUMA_2020, 1e-6)[..., None] ** 0.2 * _WHITE
    if primaries == ColorPrimaries.BT2020:
        light_HW3 = _into_gamut(light_HW3 @ _TO_709.T)
    most_HW1 = np.maximum(light_HW3.max(axis=-1, keepdims=True), 1e-6)
    light_HW3 *= _rolled_off(most_HW1) / most_HW1
    return _srgb_codes()[np.round(np.clip(light_HW3, 0, 1) * (_CODES - 1)).astype(np.uint16)]


def _into_gamut(light_HW3: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours with a negative part are mixed with grey of their own brightness until it is 0."""
    grey_HW1 = np.maximum(light_HW3 @ _LUMA_709, 0)[..., None]
    least_HW1 = np.minimum(light_HW3.min(axis=-1, keepdims=True), 0)
    share_HW1 = grey_HW1 / np.maximum(grey_HW1 - least_HW1, 1e-6)
    return np.where(least_HW1 < 0, grey_HW1 + share_HW1 * (light_HW3 - grey_HW1), light_HW3)


def _rolled_off(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reinhard's curve above the knee, which it leaves with slope 1."""
    above = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    white = (_WHITE - _KNEE) / (1 - _KNEE)
    return np.minimum(light, _KNEE) + (1 - _KNEE) * above * (1 + above / white**2) / (1 + above)


@lru_cache(maxsize=4)
def _light(trc: int) -> NDArray[np.float32]:
    """Linear light of each code value: of the display, for HLG of the scene (1 at most)."""
    curves: dict[int, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
        ColorTrc.SMPTE2084: _pq_light,
        ColorTrc.ARIB_STD_B67: _hlg_light,
    }
    code = np.arange(_CODES) / (_CODES - 1)
    return curves.get(trc, _sdr_light)(code).astype(np.float32)


def _pq_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    root = code ** (1 / m2)
    return 10_000 / PAPER_NITS * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """ARIB STD-B67."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def _sdr_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB, as which video of standard range is shown to a model."""
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


@lru_cache(maxsize=1)
def _srgb_codes() -> NDArray[np.uint8]:
    light = np.arange(_CODES) / (_CODES - 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)
