"""Writes the npy files of this folder with NumPy: `python make_npy.py`.

Readable ones hold k/8 - 1 for k = 0, 1, ... of shape [2, 3] unless their name says otherwise.
"""

import pathlib

import numpy as np
from numpy.lib import format

here = pathlib.Path(__file__).parent
values = (np.arange(6) / 8 - 1).reshape(2, 3)


def save(name, array, version=None, pickle=False):
    with open(here / f"{name}.npy", "wb") as f:
        format.write_array(f, array, version=version, allow_pickle=pickle)


save("f4", values.astype("<f4"))
save("f8", values.astype("<f8"))
save("f2", values.astype("<f2"))
save("f4_big_endian", values.astype(">f4"))
save("f8_big_endian", values.astype(">f8"))
save("f4_fortran", np.asfortranarray(values.astype("<f4")))
save("f8_fortran_3d", np.asfortranarray((np.arange(24) / 8 - 1).reshape(2, 3, 4)))
save("f4_version_2", values.astype("<f4"), version=(2, 0))
save("f4_version_3", values.astype("<f4"), version=(3, 0))
save("scalar", np.array(2.5, "<f8"))
save("one", np.array([2.5], "<f4"))
save("no_rows", np.zeros((0, 3), "<f4"))

save("i4", values.astype("<i4"))
save("bool", values > 0)
save("c8", values.astype("<c8"))
save("f16_bytes", values.astype(np.longdouble))
save("strings", np.array(["u10", "v10"]))
save("dates", np.array(["2020-01-01"], "M8[D]"))
save("record", np.array([(1.0, 2.0)], [("mean", "<f4"), ("std", "<f4")]))
save("objects", np.array([1.0, None], object), pickle=True)
np.savez(here / "archive.npz", means=values)
