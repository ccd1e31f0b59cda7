"""Writes the HDF5 files of this folder with h5py: `python make_hdf5.py`.

Every readable file holds `fields` of shape [3, 2, 4, 6] with the values k/8 - 9 for k = 0, 1, ... in row-major order, which
f16, f32 and f64 hold exactly. The others hold what must be refused.
"""

import pathlib

import h5py
import numpy as np

here = pathlib.Path(__file__).parent
shape = (3, 2, 4, 6)
values = (np.arange(np.prod(shape)) / 8 - 9).reshape(shape)
f32 = values.astype("<f4")


def write(name, data=f32, libver="earliest", file=None, **keywords):
    with h5py.File(here / f"{name}.h5", "w", libver=libver, **(file or {})) as f:
        f.create_dataset("fields", data=data, **keywords)


write("contiguous")  # superblock version 0
write("latest_contiguous", libver="latest")  # superblock version 3
write("v108_chunked", libver=("v108", "v108"), chunks=(1, 2, 4, 6), compression="gzip")  # superblock version 2
write("chunked", chunks=(2, 1, 3, 4))
write("gzip", chunks=(1, 2, 4, 6), compression="gzip")
write("gzip_shuffle", chunks=(2, 2, 3, 4), compression="gzip", shuffle=True)
write("gzip_shuffle_fletcher", chunks=(1, 1, 4, 6), compression="gzip", shuffle=True, fletcher32=True)
write("latest_gzip_shuffle", libver="latest", chunks=(2, 2, 3, 4), compression="gzip", shuffle=True)
write("latest_single_chunk", libver="latest", chunks=shape, compression="gzip")
write("latest_growing", libver="latest", chunks=(1, 2, 4, 6), maxshape=(None, 2, 4, 6), compression="gzip")
write("latest_growing_twice", libver="latest", chunks=(1, 2, 2, 6), maxshape=(None, 2, None, 6))
write("big_endian", data=values.astype(">f4"))
write("big_endian_gzip", data=values.astype(">f4"), chunks=(1, 2, 4, 6), compression="gzip", shuffle=True)
write("f64", data=values.astype("<f8"))
write("f64_big_endian_gzip", data=values.astype(">f8"), chunks=(1, 2, 4, 6), compression="gzip", shuffle=True)
write("f16", data=values.astype("<f2"))
write("f16_gzip", data=values.astype(">f2"), chunks=(1, 2, 4, 6), compression="gzip")
write("user_block", file={"userblock_size": 512})
write("lzf", chunks=(1, 2, 4, 6), compression="lzf")
if h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
    try:
        write("szip", chunks=(1, 2, 4, 6), compression="szip")
    except ValueError as error:
        print("szip cannot be written here:", error)
write("scale_offset", data=(values * 8 + 80).astype("<i4"), chunks=(1, 2, 4, 6), scaleoffset=0)

with h5py.File(here / "compact.h5", "w") as f:
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    dcpl.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(f.id, b"fields", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), dcpl=dcpl)
    f["fields"][...] = f32

with h5py.File(here / "in_group.h5", "w") as f:
    f.create_dataset("era5/fields", data=f32)
    f["fields"] = h5py.SoftLink("/era5/fields")

# Wrong in the one or other way.
write("f64_too_large", data=values.astype("<f8") * 1e300)
write("integers", data=values.astype("<i4"))
write("booleans", data=values > 0)
write("complex", data=values.astype("<c8"))
write("strings", data=np.array([b"u10", b"v10"]))
write("scalar", data=np.float32(1.5))
write("zero_steps", data=f32[:0])
with h5py.File(here / "unwritten_chunks.h5", "w") as f:
    f.create_dataset("fields", shape=shape, dtype="<f4", chunks=(1, 2, 4, 6), fillvalue=np.nan)
    f["fields"][0] = f32[0]
with h5py.File(here / "huge_unwritten.h5", "w") as f:
    f.create_dataset("fields", shape=(1 << 20, 64, 721, 1440), dtype="<f4", chunks=(1, 1, 721, 1440))
with h5py.File(here / "bfloat16.h5", "w") as f:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    h5py.h5d.create(f.id, b"fields", kind, h5py.h5s.create_simple(shape))
with h5py.File(here / "other_name.h5", "w") as f:
    f.create_dataset("field", data=f32)
    f.create_dataset("lat", data=np.zeros(4, "<f4"))
    f.create_group("more")
with h5py.File(here / "group.h5", "w") as f:
    f.create_group("fields")
with h5py.File(here / "empty.h5", "w") as f:
    pass
with h5py.File(here / "null.h5", "w") as f:
    f["fields"] = h5py.Empty("<f4")
with h5py.File(here / "external_link.h5", "w") as f:
    f["fields"] = h5py.ExternalLink("contiguous.h5", "/fields")
with h5py.File(here / "soft_link_loop.h5", "w") as f:
    f["fields"] = h5py.SoftLink("/other")
    f["other"] = h5py.SoftLink("/fields")
with h5py.File(here / "dangling_link.h5", "w") as f:
    f["fields"] = h5py.SoftLink("/nowhere")
with h5py.File(here / "external_data.h5", "w") as f:
    f.create_dataset("fields", shape=shape, dtype="<f4", external=[("raw.bin", 0, h5py.h5f.UNLIMITED)])
(here / "raw.bin").unlink(missing_ok=True)
with h5py.File(here / "virtual.h5", "w", libver="latest") as f:
    layout = h5py.VirtualLayout(shape=shape, dtype="<f4")
    layout[...] = h5py.VirtualSource("contiguous.h5", "fields", shape=shape)
    f.create_virtual_dataset("fields", layout)
