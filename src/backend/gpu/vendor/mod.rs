//! Matrix products of the vendors' libraries, cuBLASLt and hipBLASLt, opened when the program runs.
//!
//! Both have the same functions under two prefixes and number their options differently. Both think in columns: a row-major
//! matrix `[r, c]` is to them the column-major matrix `[c, r]`, so the product `Y = A B` of row-major matrices is asked for
//! as `Yᵗ = Bᵗ Aᵗ`, the operands swapped and nothing moved. A bias along the last axis of `Y` is a bias along the rows of `Yᵗ`,
//! which is the one that both add.
//!
//! What they cannot do exactly is not asked of them: their GELU is the tanh form, and splitting the inner axis with additions
//! in place would depend on the order in which blocks finish.
#![allow(
    unsafe_code,
    reason = "calls of the libraries; every pointer given is to a live local of the type in their headers"
)]

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::{Driver, Stream};
use super::library::Library;
use super::survey;
use crate::error::{Error, Result};

/// Status of a call: zero is success.
type Status = c_int;
/// A pointer to something of the library's.
type Handle = u64;

/// Bytes of workspace to offer: what cuBLAS takes itself on Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;
/// Ways that a library is asked for; the best guess first.
const CHOICES: usize = 8;

/// Number types of a product: storage of all operands; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// f32 in full precision.
    F32,
    /// f32 with operands rounded to ten bits of mantissa, where the device is faster so.
    Tf32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// `Y = op(A) op(B)`, row-major: `Y [m, n]`, `op(A) [m, k]`, `op(B) [k, n]`, `batch` times at fixed distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of the result.
    pub m: u64,
    /// Columns of the result.
    pub n: u64,
    /// What is summed over.
    pub k: u64,
    /// Whether `A` lies as `[k, m]`.
    pub is_a_transposed: bool,
    /// Whether `B` lies as `[n, k]`.
    pub is_b_transposed: bool,
    /// Number type.
    pub number: Number,
    /// Whether `Y` holds the f32 sums whatever the number type.
    pub is_result_f32: bool,
    /// How many products.
    pub batch: u32,
    /// Elements from one product's operands to the next's: `A`, `B`, `Y`; zero repeats one.
    pub strides: [i64; 3],
    /// Whether a bias `[n]` is added to every row.
    pub has_bias: bool,
    /// Whether the product is added to what `Y` holds.
    pub accumulates: bool,
}

/// Addresses of a product's operands.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Result.
    pub y: u64,
    /// Left operand.
    pub a: u64,
    /// Right operand.
    pub b: u64,
    /// Bias, or zero.
    pub bias: u64,
    /// Memory for the library's own use.
    pub workspace: u64,
    /// Its bytes.
    pub workspace_bytes: usize,
}

/// An open library on one device.
#[derive(Debug)]
pub struct BlasLt {
    driver: Arc<dyn Driver>,
    api: Api,
    numbers: Numbers,
    handle: Handle,
    version: i64,
    /// What is known of each product, by its shape and the alignment of its operands.
    plans: Mutex<HashMap<(Product, u64), Plan>>,
}

/// A product as the library describes it.
#[derive(Debug)]
struct Plan {
    product: Handle,
    layouts: [Handle; 3],
    ways: Vec<Heuristic>,
}

/// `MatmulHeuristicResult_t`: starts with the algorithm; 96 bytes of cuBLASLt, 56 of hipBLASLt.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
struct Heuristic([u8; RESULT_BYTES]);

/// The longer of the two.
const RESULT_BYTES: usize = 96;

/// What the two libraries number differently.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    prefix: &'static str,
    /// Bytes of a heuristic result.
    result_bytes: usize,
    compute: c_int,
    compute_tf32: c_int,
    plain: i32,
    transposed: i32,
    transpose_a: c_int,
    transpose_b: c_int,
    epilogue: c_int,
    bias_pointer: c_int,
    bias_type: c_int,
    batch_count: c_int,
    batch_stride: c_int,
    /// The preferences for reductions and for the alignment of A, B, C and D, which hipBLASLt does not have.
    reductions: Option<(c_int, [c_int; 4])>,
}

/// `cublasLt.h` of 12.0 to 13.
const CUBLASLT: Numbers = Numbers {
    prefix: "cublasLt",
    result_bytes: 96,
    compute: 68,
    compute_tf32: 77,
    plain: 0,
    transposed: 1,
    transpose_a: 3,
    transpose_b: 4,
    epilogue: 7,
    bias_pointer: 8,
    bias_type: 26,
    batch_count: 5,
    batch_stride: 6,
    reductions: Some((3, [5, 6, 7, 8])),
};

/// `hipblaslt.h` of ROCm 6 and 7, with the operations and compute types of `hipblas-common.h`.
const HIPBLASLT: Numbers = Numbers {
    prefix: "hipblasLt",
    result_bytes: 56,
    compute: 2,
    compute_tf32: 6,
    plain: 111,
    transposed: 112,
    transpose_a: 0,
    transpose_b: 1,
    epilogue: 2,
    bias_pointer: 3,
    bias_type: 4,
    batch_count: 0,
    batch_stride: 1,
    reductions: None,
};

/// The maximum of a workspace, in both.
const PREFERS_WORKSPACE: c_int = 1;
/// Sums of a split inner axis out of place, in the type of the sum or of the result.
const REDUCE_OUT_OF_PLACE: u32 = 2 | 4;
const EPILOGUE_NONE: u32 = 1;
const EPILOGUE_BIAS: u32 = 4;

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type Set = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> Status;

#[derive(Debug)]
struct Api {
    name: String,
    create: Create,
    destroy: Destroy,
    product_create: unsafe extern "C" fn(*mut Handle, c_int, c_int) -> Status,
    product_set: Set,
    product_destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> Status,
    layout_set: Set,
    layout_destroy: Destroy,
    preference_create: Create,
    preference_set: Set,
    preference_destroy: Destroy,
    heuristic: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        c_int,
        *mut c_void,
        *mut c_int,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        Handle,
        Handle,
        *const f32,
        u64,
        Handle,
        u64,
        Handle,
        *const f32,
        u64,
        Handle,
        u64,
        Handle,
        *const c_void,
        u64,
        usize,
        u64,
    ) -> Status,
}

impl Api {
    fn load(library: &Library, prefix: &str) -> Result<Api> {
        let mut missing = Vec::new();
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is that of both headers.
                unsafe { library.symbol(&format!("{prefix}{}", $name), &mut missing) }
            };
        }
        let fields = (
            (symbol!("Create"), symbol!("Destroy"), symbol!("MatmulDescCreate"), symbol!("MatmulDescSetAttribute")),
            (symbol!("MatmulDescDestroy"), symbol!("MatrixLayoutCreate"), symbol!("MatrixLayoutSetAttribute")),
            (
                symbol!("MatrixLayoutDestroy"),
                symbol!("MatmulPreferenceCreate"),
                symbol!("MatmulPreferenceSetAttribute"),
            ),
            (symbol!("MatmulPreferenceDestroy"), symbol!("MatmulAlgoGetHeuristic"), symbol!("Matmul")),
        );
        match fields {
            (
                (Some(create), Some(destroy), Some(product_create), Some(product_set)),
                (Some(product_destroy), Some(layout_create), Some(layout_set)),
                (Some(layout_destroy), Some(preference_create), Some(preference_set)),
                (Some(preference_destroy), Some(heuristic), Some(matmul)),
            ) => Ok(Api {
                name: library.name().to_owned(),
                create,
                destroy,
                product_create,
                product_set,
                product_destroy,
                layout_create,
                layout_set,
                layout_destroy,
                preference_create,
                preference_set,
                preference_destroy,
                heuristic,
                matmul,
            }),
            _ => Err(library.lacks(prefix, &missing)),
        }
    }
}

/// The version that the library tells: to cuBLASLt nothing is given, hipBLASLt wants its handle and a place.
fn version(library: &Library, numbers: &Numbers, handle: Handle) -> i64 {
    let mut missing = Vec::new();
    if numbers.reductions.is_some() {
        // SAFETY: the type is that of `cublasLt.h`.
        let call: Option<unsafe extern "C" fn() -> usize> =
            unsafe { library.symbol("cublasLtGetVersion", &mut missing) };
        // SAFETY: it takes nothing and gives a number.
        return call.map_or(0, |call| unsafe { call() } as i64);
    }
    // SAFETY: the type is that of `hipblaslt.h`.
    let call: Option<unsafe extern "C" fn(Handle, *mut c_int) -> Status> =
        unsafe { library.symbol("hipblasLtGetVersion", &mut missing) };
    let mut version = 0;
    // SAFETY: the handle is alive and `version` a live int; a status that is not success leaves it zero.
    call.map(|call| unsafe { call(handle, &raw mut version) });
    version.into()
}

impl Number {
    /// `cudaDataType` and `hipDataType` agree.
    fn storage(self) -> c_int {
        match self {
            Number::F32 | Number::Tf32 => 0,
            Number::F16 => 2,
            Number::Bf16 => 14,
        }
    }
}

impl BlasLt {
    /// Opens the library of the driver's vendor.
    ///
    /// # Errors
    /// [`Error::Device`] if it is not there, [`Error::Driver`] if it does not start.
    pub fn open(driver: Arc<dyn Driver>) -> Result<BlasLt> {
        let names = if driver.info().arch.is_nvidia() {
            survey::names(&survey::CUBLASLT)
        } else {
            survey::names(&survey::HIPBLASLT)
        };
        BlasLt::open_from(driver, &names)
    }

    /// Opens the first of `names`.
    ///
    /// # Errors
    /// As [`BlasLt::open`].
    pub(crate) fn open_from(driver: Arc<dyn Driver>, names: &[String]) -> Result<BlasLt> {
        let numbers = if driver.info().arch.is_nvidia() { CUBLASLT } else { HIPBLASLT };
        let library = Library::open(numbers.prefix, names)?;
        let api = Api::load(&library, numbers.prefix)?;
        driver.make_current()?;
        let mut handle = 0;
        // SAFETY: `handle` is a live pointer-sized local; it is destroyed when this value is dropped.
        check(&numbers, "Create", unsafe { (api.create)(&raw mut handle) })?;
        let version = version(&library, &numbers, handle);
        Ok(BlasLt { driver, api, numbers, handle, version, plans: Mutex::default() })
    }

    /// Its version as the library counts, zero if it does not tell.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// The name under which the library was found.
    pub fn library(&self) -> &str {
        &self.api.name
    }

    /// In how many ways the library can compute `product`, at most eight, the one it thinks best first; none if it cannot.
    ///
    /// # Errors
    /// [`Error::Driver`] if the library refuses the description itself.
    pub fn ways(&self, product: &Product, operands: &Operands) -> Result<usize> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.plan(&mut plans, product, operands)?.ways.len())
    }

    /// Computes `product` in one of its [`BlasLt::ways`], in the order of `stream`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such way or an operand is missing; [`Error::Driver`] from the library.
    pub fn matmul(&self, product: &Product, operands: &Operands, way: usize, stream: Stream) -> Result<()> {
        let Operands { y, a, b, bias, workspace, workspace_bytes } = *operands;
        if y == 0 || a == 0 || b == 0 || (product.has_bias && bias == 0) {
            return Err(Error::argument("matmul: expected the address of every operand, found zero"));
        }
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = self.plan(&mut plans, product, operands)?;
        let Some(found) = plan.ways.get(way) else {
            return Err(Error::argument(format!(
                "matmul: {} can compute {product:?} in {} ways, found way {way}",
                self.api.name,
                plan.ways.len()
            )));
        };
        self.driver.make_current()?;
        if product.has_bias {
            self.set("MatmulDescSetAttribute", self.api.product_set, plan.product, self.numbers.bias_pointer, &bias)?;
        }
        let (one, add) = (1.0f32, if product.accumulates { 1.0f32 } else { 0.0 });
        let [first, second, result] = plan.layouts;
        // SAFETY: the descriptions are alive and locked; `one` and `add` are live floats; addresses are of the device; the
        // algorithm stands first in the heuristic's result.
        let status = unsafe {
            (self.api.matmul)(
                self.handle,
                plan.product,
                &raw const one,
                b,
                first,
                a,
                second,
                &raw const add,
                y,
                result,
                y,
                result,
                (&raw const *found).cast(),
                workspace,
                workspace_bytes,
                stream.0,
            )
        };
        check(&self.numbers, "Matmul", status)
    }

    fn plan<'a>(
        &self,
        plans: &'a mut HashMap<(Product, u64), Plan>,
        product: &Product,
        operands: &Operands,
    ) -> Result<&'a Plan> {
        let Operands { y, a, b, bias, .. } = *operands;
        // The alignment that all operands share, up to the 256 bytes that the libraries assume.
        let alignment = 1 << (y | a | b | bias | 256).trailing_zeros();
        // A description does not say whether the product is added: the ways are those of the product that is not.
        let key = (Product { accumulates: false, ..*product }, alignment);
        match plans.entry(key) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(self.describe(product, operands, alignment)?)),
        }
    }

    fn describe(&self, product: &Product, operands: &Operands, alignment: u64) -> Result<Plan> {
        self.driver.make_current()?;
        let mut plan = Plan { product: 0, layouts: [0; 3], ways: Vec::new() };
        // What was created before an error is destroyed with the rest.
        let described = self
            .describe_product(&mut plan, product, operands.bias)
            .and_then(|()| self.describe_layouts(&mut plan, product))
            .and_then(|()| self.find_ways(&plan, alignment, operands.workspace_bytes));
        match described {
            Ok(ways) => Ok(Plan { ways, ..plan }),
            Err(e) => {
                self.end(&plan);
                Err(e)
            }
        }
    }

    fn describe_product(&self, plan: &mut Plan, product: &Product, bias: u64) -> Result<()> {
        let n = &self.numbers;
        let compute = if product.number == Number::Tf32 { n.compute_tf32 } else { n.compute };
        // Scales are f32.
        // SAFETY: a live pointer-sized place.
        let status = unsafe { (self.api.product_create)(&raw mut plan.product, compute, Number::F32.storage()) };
        check(n, "MatmulDescCreate", status)?;
        let set = |attribute, value: &i32| {
            self.set("MatmulDescSetAttribute", self.api.product_set, plan.product, attribute, value)
        };
        let operation = |is| if is { n.transposed } else { n.plain };
        // The operands are swapped: B comes first.
        set(n.transpose_a, &operation(product.is_b_transposed))?;
        set(n.transpose_b, &operation(product.is_a_transposed))?;
        let epilogue = if product.has_bias { EPILOGUE_BIAS } else { EPILOGUE_NONE };
        self.set("MatmulDescSetAttribute", self.api.product_set, plan.product, n.epilogue, &epilogue)?;
        if product.has_bias {
            set(n.bias_type, &product.number.storage())?;
            // The heuristic looks at its alignment.
            self.set("MatmulDescSetAttribute", self.api.product_set, plan.product, n.bias_pointer, &bias)?;
        }
        Ok(())
    }

    fn describe_layouts(&self, plan: &mut Plan, p: &Product) -> Result<()> {
        let n = &self.numbers;
        // Rows and columns as the library sees them: a row of ours is a column of its.
        let b = if p.is_b_transposed { (p.k, p.n) } else { (p.n, p.k) };
        let a = if p.is_a_transposed { (p.m, p.k) } else { (p.k, p.m) };
        let [stride_a, stride_b, stride_y] = p.strides;
        let number = p.number.storage();
        let of_result = if p.is_result_f32 { Number::F32.storage() } else { number };
        let all = [(b, stride_b, number), (a, stride_a, number), ((p.n, p.m), stride_y, of_result)];
        for (i, ((rows, columns), stride, number)) in all.into_iter().enumerate() {
            let distance = i64::try_from(rows).map_err(|_| Error::too_large("matmul", "columns", rows))?;
            let layout = &raw mut plan.layouts[i];
            // SAFETY: a live pointer-sized place.
            let status = unsafe { (self.api.layout_create)(layout, number, rows, columns, distance) };
            check(n, "MatrixLayoutCreate", status)?;
            if p.batch > 1 {
                let layout = plan.layouts[i];
                self.set("MatrixLayoutSetAttribute", self.api.layout_set, layout, n.batch_count, &p.batch)?;
                self.set("MatrixLayoutSetAttribute", self.api.layout_set, layout, n.batch_stride, &stride)?;
            }
        }
        Ok(())
    }

    fn find_ways(&self, plan: &Plan, alignment: u64, workspace_bytes: usize) -> Result<Vec<Heuristic>> {
        let n = &self.numbers;
        let mut preference = 0;
        // SAFETY: a live pointer-sized local, destroyed below.
        check(n, "MatmulPreferenceCreate", unsafe { (self.api.preference_create)(&raw mut preference) })?;
        let ways = self.ask(plan, preference, alignment, workspace_bytes);
        // SAFETY: it was created above.
        unsafe { (self.api.preference_destroy)(preference) };
        ways
    }

    fn ask(&self, plan: &Plan, preference: Handle, alignment: u64, workspace_bytes: usize) -> Result<Vec<Heuristic>> {
        let n = &self.numbers;
        let (call, set) = ("MatmulPreferenceSetAttribute", self.api.preference_set);
        self.set(call, set, preference, PREFERS_WORKSPACE, &(workspace_bytes as u64))?;
        if let Some((reductions, alignments)) = n.reductions {
            self.set(call, set, preference, reductions, &REDUCE_OUT_OF_PLACE)?;
            for attribute in alignments {
                self.set(call, set, preference, attribute, &(alignment as u32))?;
            }
        }
        let mut results = vec![0u64; CHOICES * n.result_bytes / 8];
        let (mut count, [first, second, result]) = (0, plan.layouts);
        // SAFETY: all descriptions are alive; `results` has room for as many results as are asked for; `count` is a live int.
        let status = unsafe {
            (self.api.heuristic)(
                self.handle,
                plan.product,
                first,
                second,
                result,
                result,
                preference,
                CHOICES as c_int,
                results.as_mut_ptr().cast(),
                &raw mut count,
            )
        };
        // A product that the library cannot compute is none that went wrong: the caller has a kernel of its own.
        if status != 0 {
            return Ok(Vec::new());
        }
        let results = results.chunks_exact(n.result_bytes / 8).take(usize::try_from(count).unwrap_or(0));
        Ok(results
            .map(|words| {
                let mut way = Heuristic([0; RESULT_BYTES]);
                for (to, word) in way.0.chunks_exact_mut(8).zip(words) {
                    to.copy_from_slice(&word.to_ne_bytes());
                }
                way
            })
            .collect())
    }

    fn set<T>(&self, call: &str, set: Set, of: Handle, attribute: c_int, value: &T) -> Result<()> {
        // SAFETY: `value` is alive and of the size that is told; a wrong size is the library's error.
        check(&self.numbers, call, unsafe { set(of, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) })
    }

    /// Destroys what a plan has.
    fn end(&self, plan: &Plan) {
        // SAFETY: each was created once; zero was never created.
        unsafe {
            if plan.product != 0 {
                (self.api.product_destroy)(plan.product);
            }
            for layout in plan.layouts.into_iter().filter(|l| *l != 0) {
                (self.api.layout_destroy)(layout);
            }
        }
    }
}

impl Drop for BlasLt {
    fn drop(&mut self) {
        // Without its device nothing of it can be destroyed.
        if self.driver.make_current().is_err() {
            return;
        }
        let plans = std::mem::take(self.plans.get_mut().unwrap_or_else(PoisonError::into_inner));
        plans.values().for_each(|plan| self.end(plan));
        // SAFETY: it was created once.
        unsafe { (self.api.destroy)(self.handle) };
    }
}

/// An error for any status but success, with the sentence of the numbers that both libraries share.
fn check(numbers: &Numbers, call: &str, status: Status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(Error::driver(format!(
        "{}{call}: status {status}; `perfrun doctor` tells the library's version",
        numbers.prefix
    )))
}
