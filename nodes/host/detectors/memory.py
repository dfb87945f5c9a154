"""About what one picture takes in a detector or segmenter, in bytes, so that the host makes room for it beforehand."""


def of_queries(pixels: float, width: int, levels: int, points: int, itemsize: int) -> float:
    """In a detector with deformable attention over a picture of so many pixels.

    Its encoder samples `points` values of `width` on each of `levels` maps for each of its cells, which lie 8 pixels
    apart on the finest map and twice as far on each next; six copies of that are alive at a time.
    """
    cells = pixels / 64 * 4 / 3
    return 6 * cells * width * levels * points * itemsize


def of_places(side: float, heads: int, itemsize: int) -> float:
    """In an image encoder that looks from all to all places of a grid of `side` x `side`: four copies of that."""
    return 4 * heads * side**4 * itemsize
