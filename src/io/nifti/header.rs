//! The 348 bytes at the start of a NIfTI-1 file.

/// Length of the header, which is also its first number.
pub(super) const HEADER: usize = 348;
/// Where the numbers of a single file start at the earliest: after the header and four bytes that announce extensions.
pub(super) const FIRST_OFFSET: usize = 352;
/// No volume has more voxels: 512 each way.
const MAX_VOXELS: usize = 1 << 27;

/// The number type of the voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NiftiDtype {
    /// 8 bits, without a sign.
    U8,
    /// 8 bits.
    I8,
    /// 16 bits without a sign.
    U16,
    /// 16 bits.
    I16,
    /// 32 bits without a sign.
    U32,
    /// 32 bits.
    I32,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl NiftiDtype {
    fn of(code: i16) -> Option<NiftiDtype> {
        Some(match code {
            2 => NiftiDtype::U8,
            4 => NiftiDtype::I16,
            8 => NiftiDtype::I32,
            16 => NiftiDtype::F32,
            64 => NiftiDtype::F64,
            256 => NiftiDtype::I8,
            512 => NiftiDtype::U16,
            768 => NiftiDtype::U32,
            _ => return None,
        })
    }

    /// Bytes of a number.
    pub(super) fn size(self) -> usize {
        match self {
            NiftiDtype::U8 | NiftiDtype::I8 => 1,
            NiftiDtype::U16 | NiftiDtype::I16 => 2,
            NiftiDtype::U32 | NiftiDtype::I32 | NiftiDtype::F32 => 4,
            NiftiDtype::F64 => 8,
        }
    }
}

/// Where the voxels lie in the head, as the header says it: copied from one file to another, never computed with.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// `qform_code` and `sform_code`.
    pub codes: [i16; 2],
    /// The quaternion's b, c, d and its offsets, then the three rows of the affine map.
    pub place: [f32; 18],
    /// Sizes of a voxel in each direction; the fifth is the time between two volumes.
    pub steps: [f32; 8],
    /// Units of space and time, `xyzt_units`.
    pub units: u8,
}

impl Default for Geometry {
    /// Cubes of a millimetre, volumes a second apart, no place in the head.
    fn default() -> Geometry {
        Geometry { codes: [0; 2], place: [0.0; 18], steps: [1.0; 8], units: 2 | 8 }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq)]
pub struct NiftiHeader {
    /// Voxels along x, y and z; x is fastest in the file.
    pub axes: [usize; 3],
    /// Volumes.
    pub volumes: usize,
    /// The number type.
    pub dtype: NiftiDtype,
    /// What a number is multiplied with; 1 if the header gives none.
    pub slope: f64,
    /// What is added then.
    pub intercept: f64,
    /// Where the voxels lie.
    pub geometry: Geometry,
    // Where the numbers start.
    pub(super) offset: usize,
    pub(super) is_big_endian: bool,
}

/// Numbers of a header in its byte order.
struct Fields<'a> {
    bytes: &'a [u8; HEADER],
    is_big_endian: bool,
}

impl Fields<'_> {
    fn four(&self, at: usize) -> [u8; 4] {
        let mut b = [0; 4];
        b.iter_mut().zip(self.bytes.iter().skip(at)).for_each(|(b, &x)| *b = x);
        if self.is_big_endian {
            b.reverse();
        }
        b
    }

    fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.four(at))
    }

    fn i16(&self, at: usize) -> i16 {
        let [a, b, c, d] = self.four(at);
        if self.is_big_endian { i16::from_le_bytes([c, d]) } else { i16::from_le_bytes([a, b]) }
    }
}

impl NiftiHeader {
    /// Voxels of a volume.
    pub fn voxels(&self) -> usize {
        self.axes.iter().product()
    }

    /// Reads a header.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Result<NiftiHeader, String> {
        let length = Fields { bytes, is_big_endian: false }.four(0);
        let is_big_endian = match (u32::from_le_bytes(length), u32::from_be_bytes(length)) {
            (348, _) => false,
            (_, 348) => true,
            (540, _) | (_, 540) => {
                return Err("expected NIfTI-1, found NIfTI-2; convert it with fslchfiletype or nibabel".to_owned());
            }
            (found, _) => {
                return Err(format!("expected a NIfTI-1 header, which starts with the number 348, found {found}"));
            }
        };
        match bytes.last_chunk::<4>() {
            Some(b"n+1\0") => {}
            Some(b"ni1\0") => {
                return Err(
                    "expected header and voxels in one file, found the header of a pair .hdr and .img; join them \
                            with fslchfiletype NIFTI_GZ"
                        .to_owned(),
                );
            }
            found => {
                let found = found.map(|b| b.escape_ascii().to_string()).unwrap_or_default();
                return Err(format!("expected the magic n+1, found {found}: an ANALYZE file is no NIfTI"));
            }
        }
        let fields = Fields { bytes, is_big_endian };
        let (axes, volumes) = axes(&fields)?;
        let code = fields.i16(70);
        let dtype = NiftiDtype::of(code)
            .ok_or_else(|| format!("expected integers of 8 to 32 bits, f32 or f64, found the data type {code}"))?;
        let offset = f64::from(fields.f32(108));
        if !(FIRST_OFFSET as f64..=f64::from(1 << 24)).contains(&offset) || offset.fract() != 0.0 {
            return Err(format!("vox_offset: expected a whole number from {FIRST_OFFSET}, found {offset}"));
        }
        let (slope, intercept) = (f64::from(fields.f32(112)), f64::from(fields.f32(116)));
        if !slope.is_finite() || !intercept.is_finite() {
            return Err(format!("scl_slope and scl_inter: expected finite numbers, found {slope} and {intercept}"));
        }
        // 0 means that numbers are meant as they are.
        let (slope, intercept) = if slope == 0.0 { (1.0, 0.0) } else { (slope, intercept) };
        let geometry = Geometry {
            codes: [fields.i16(252), fields.i16(254)],
            place: std::array::from_fn(|i| fields.f32(256 + 4 * i)),
            steps: std::array::from_fn(|i| fields.f32(76 + 4 * i)),
            units: bytes.get(123).copied().unwrap_or_default(),
        };
        Ok(NiftiHeader { axes, volumes, dtype, slope, intercept, geometry, offset: offset as usize, is_big_endian })
    }

    /// The header of f32 volumes of these axes, at this place, in little-endian order.
    pub(super) fn bytes(axes: [usize; 3], volumes: usize, geometry: &Geometry) -> Result<[u8; FIRST_OFFSET], String> {
        let mut out = [0_u8; FIRST_OFFSET];
        let mut put = |at: usize, bytes: &[u8]| {
            out.iter_mut().skip(at).zip(bytes).for_each(|(o, &b)| *o = b);
        };
        put(0, &348_i32.to_le_bytes());
        let [x, y, z] = axes;
        for (i, n) in [4, x, y, z, volumes, 1, 1, 1].into_iter().enumerate() {
            let n = i16::try_from(n).map_err(|_| format!("an axis of length {n} does not fit NIfTI-1"))?;
            put(40 + 2 * i, &n.to_le_bytes());
        }
        put(70, &16_i16.to_le_bytes());
        put(72, &32_i16.to_le_bytes());
        for (i, step) in geometry.steps.iter().enumerate() {
            put(76 + 4 * i, &step.to_le_bytes());
        }
        put(108, &(FIRST_OFFSET as f32).to_le_bytes());
        put(112, &1.0_f32.to_le_bytes());
        put(123, &[geometry.units]);
        put(252, &geometry.codes[0].to_le_bytes());
        put(254, &geometry.codes[1].to_le_bytes());
        for (i, x) in geometry.place.iter().enumerate() {
            put(256 + 4 * i, &x.to_le_bytes());
        }
        put(344, b"n+1\0");
        Ok(out)
    }
}

/// x, y, z and the number of volumes.
fn axes(fields: &Fields<'_>) -> Result<([usize; 3], usize), String> {
    let rank = fields.i16(40);
    if !(3..=7).contains(&rank) {
        return Err(format!("expected 3 or 4 axes, found {rank}"));
    }
    let mut lengths = [1_usize; 7];
    for (i, n) in lengths.iter_mut().enumerate().take(usize::from(rank.unsigned_abs())) {
        let found = fields.i16(42 + 2 * i);
        *n = usize::try_from(found)
            .ok()
            .filter(|&n| n > 0)
            .ok_or_else(|| format!("axis {}: expected a length of at least 1, found {found}", i + 1))?;
    }
    let [x, y, z, t, rest @ ..] = lengths;
    if rest.iter().any(|&n| n > 1) {
        return Err(format!("expected 3 or 4 axes, found {lengths:?}"));
    }
    if x.saturating_mul(y).saturating_mul(z) > MAX_VOXELS {
        return Err(format!("expected at most {MAX_VOXELS} voxels a volume, found {x} x {y} x {z}"));
    }
    Ok(([x, y, z], t))
}
