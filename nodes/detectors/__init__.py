"""What finds a phrase in pictures: detectors give boxes, segmenters a mask for each box. Each package is optional."""
