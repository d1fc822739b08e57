"""The pictures of a report: small JPEGs made from the pixels of a collection, never its stored bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dr_platform.data import collections, manifest
from dr_platform.data.collections import ImageRow, Progress
from dr_platform.data.fundus import standardise
from dr_platform.data.report.facts import Picture
from dr_platform.data.screening import Key, Source
from dr_platform.errors import DataError
from dr_platform.pictures import Audience, for_everyone, photographs, thumbnail_jpeg
from dr_platform.records import Visibility

_SIDE = 128  # of a picture, pixels


def keyed(source: Source) -> list[tuple[Key, ImageRow]]:
    """The rows of a collection under the keys of `screening`."""
    record = source.record
    return [((record.visibility, record.name, row.image_id), row) for row in source.rows]


def pseudonym(key: Key) -> str:
    """The name under which an image is shown: the one that manifests use."""
    return manifest.pseudonym(f"{key[1]}/{key[2]}")


class Gallery:
    """Small pictures of the images that may be shown."""

    def __init__(self, raw_root: Path, shown: Iterable[Source], audience: Audience, progress: Progress) -> None:
        self._raw_root = raw_root
        self._audience: Audience = audience
        self._rows = {key: row for source in shown for key, row in keyed(source)}
        self._progress = progress
        self._done = 0
        self.total = 0

    def whole(self, key: Key) -> Picture:
        """The photograph as it is, to its edges."""
        return self._picture(key, self._pixels(key))

    def standard(self, key: Key) -> Picture:
        """The photograph as the networks see it."""
        pixels = self._pixels(key)
        try:
            pixels = standardise(pixels, _SIDE)
        except DataError:  # no field where prepare's quality limits are off
            return self._picture(key, pixels)
        return self._picture(key, pixels)

    def _pixels(self, key: Key) -> np.ndarray:
        directory = collections.collection_directory(self._raw_root, _visibility(key), key[1])
        return collections.read_image(directory, self._rows[key], smallest=2 * _SIDE)

    def _picture(self, key: Key, pixels: np.ndarray) -> Picture:
        row = self._rows[key]
        photograph = photographs(pixels[None], _visibility(key), [row.license])
        if self._audience == "site":
            size, jpeg = thumbnail_jpeg(photograph, self._audience, _SIDE)
        else:
            size, jpeg = thumbnail_jpeg(for_everyone(photograph), "everyone", _SIDE)
        self._done += 1
        self._progress(self._done, self.total)
        return Picture(pseudonym(key), key[1], _visibility(key), row.grade, *size, jpeg)


def _visibility(key: Key) -> Visibility:
    return "public" if key[0] == "public" else "proprietary"
