//! The C line of a kernel is its declaration: parsed from the text that is compiled, so nothing is declared twice.

use std::fmt;

/// What a parameter of a kernel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `const U*`: an input. The element's type, as written.
    In(String),
    /// `U*`: an output.
    Out(String),
    /// A number of this type, as written.
    Number(String),
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::In(of) => write!(f, "const {of}* {}", self.name),
            Kind::Out(of) => write!(f, "{of}* {}", self.name),
            Kind::Number(of) => write!(f, "{of} {}", self.name),
        }
    }
}

/// The parameters of the kernel `entry` in `text`.
///
/// # Errors
/// A sentence: no such kernel, or a parameter that cannot be read.
pub(crate) fn parameters(text: &str, entry: &str) -> Result<Vec<Parameter>, String> {
    let text = without_comments(text);
    let list = argument_list(&text, entry).ok_or_else(|| format!("no `extern \"C\" __global__` kernel {entry}"))?;
    let parts = list.split(',').map(str::trim).filter(|p| !p.is_empty());
    parts.map(|part| parameter(part).ok_or_else(|| format!("{entry}: cannot read the parameter `{part}`"))).collect()
}

/// Whether the kernel `entry` in `text` begins with `follow();`: common/device.cuh.
pub(crate) fn follows(text: &str, entry: &str) -> bool {
    let text = without_comments(text);
    let mut bodies = text.match_indices("__global__").filter_map(|(at, _)| {
        let (head, body) = text[at..].split_once('{')?;
        let name = head[..outermost_last(head)?].trim_end().rsplit(|c: char| !is_word(c)).next()?;
        (name == entry && !head.contains(';')).then_some(body)
    });
    bodies.next().is_some_and(|body| body.trim_start().starts_with("follow();"))
}

/// The kernels of `text`, in its order.
pub(crate) fn entries(text: &str) -> Vec<String> {
    let text = without_comments(text);
    let mut found = Vec::new();
    for (at, _) in text.match_indices("__global__") {
        // The name stands before the parenthesis that the body follows: attributes have parentheses of their own.
        let head = text[at..].split(['{', ';']).next().unwrap_or_default();
        let Some(open) = outermost_last(head) else { continue };
        let name = head[..open].trim_end().rsplit(|c: char| !is_word(c)).next().unwrap_or_default();
        if !name.is_empty() && !found.iter().any(|n| n == name) {
            found.push(name.to_owned());
        }
    }
    found
}

/// Where the last parenthesis of the outermost level opens.
fn outermost_last(head: &str) -> Option<usize> {
    let (mut depth, mut last) = (0_i32, None);
    for (i, c) in head.char_indices() {
        match c {
            '(' => {
                if depth == 0 {
                    last = Some(i);
                }
                depth += 1;
            }
            ')' => depth -= 1,
            _ => {}
        }
    }
    last
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        out.push_str(&rest[..at]);
        let (end, skip) = if rest[at..].starts_with("//") { ("\n", 0) } else { ("*/", 2) };
        out.push(' ');
        rest = rest[at..].find(end).map_or("", |n| &rest[at + n + skip..]);
    }
    out.push_str(rest);
    out
}

fn argument_list<'a>(text: &'a str, entry: &str) -> Option<&'a str> {
    for (at, _) in text.match_indices("__global__") {
        let head = text[at..].split(['{', ';']).next()?;
        let Some(open) = outermost_last(head) else { continue };
        let name = head[..open].trim_end().rsplit(|c: char| !is_word(c)).next()?;
        if name == entry {
            let close = head.rfind(')')?;
            return head.get(open + 1..close);
        }
    }
    None
}

fn parameter(part: &str) -> Option<Parameter> {
    let spaced = part.replace('*', " * ");
    let noise = ["__restrict__", "__grid_constant__", "const", "volatile"];
    let words: Vec<&str> = spaced.split_whitespace().collect();
    // `const T* x`: the element is constant. `T* const x`: the pointer is, which the caller does not see.
    let star = words.iter().position(|w| *w == "*");
    let is_constant = words[..star.unwrap_or(0)].contains(&"const");
    let words: Vec<&str> = words.into_iter().filter(|w| !noise.contains(w)).collect();
    let (name, of) = words.split_last()?;
    if !name.chars().all(is_word) || of.is_empty() || of.iter().filter(|w| **w == "*").count() > 1 {
        return None;
    }
    let element = of.iter().copied().filter(|w| *w != "*").collect::<Vec<_>>().join(" ");
    let kind = match (of.contains(&"*"), is_constant) {
        (true, true) => Kind::In(element),
        (true, false) => Kind::Out(element),
        (false, _) => Kind::Number(element),
    };
    (!of.is_empty() && !matches!(&kind, Kind::In(e) | Kind::Out(e) | Kind::Number(e) if e.is_empty()))
        .then(|| Parameter { name: (*name).to_owned(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
// extern "C" __global__ void old(int x) {}
template <int N> __device__ float f(float x) { return x; }
extern "C" __global__ void __launch_bounds__(THREADS) norm_fwd(T* y, f32* __restrict__ mean,
    const T* __restrict__ x, /* a comment, with a comma */ const int *labels, i64 rows, unsigned int n, float eps) {
    if (n) { f(1.0f); }
}
extern "C" __global__ __launch_bounds__(256, 2) void norm_bwd(T *dx, T* const dy) { }
extern "C" __global__ void map(const __grid_constant__ TensorMap a, const float* const* lists) {}
extern "C" __global__ void empty() {}
extern "C" __global__ void first(float* y) {
    // At once.
    follow();
    g(y);
}
extern "C" __global__ void later(float* y) {
    g(y);
    follow();
}
"#;

    #[test]
    fn a_kernel_follows_if_that_is_its_first_word() {
        assert!(follows(TEXT, "first"));
        assert!(!["later", "empty", "norm_fwd", "old", "absent"].iter().any(|entry| follows(TEXT, entry)));
    }

    #[test]
    fn the_parameters_are_those_of_the_c_line() {
        let found = parameters(TEXT, "norm_fwd").unwrap();
        let shown: Vec<String> = found.iter().map(Parameter::to_string).collect();
        let want = ["T* y", "f32* mean", "const T* x", "const int* labels", "i64 rows", "unsigned int n", "float eps"];
        assert_eq!(shown, want);
        let found = parameters(TEXT, "norm_bwd").unwrap();
        assert_eq!(found[1].kind, Kind::Out("T".into()), "a constant pointer to what is written");
        assert_eq!(parameters(TEXT, "empty").unwrap(), []);
    }

    #[test]
    fn what_is_commented_out_or_cannot_be_read_is_an_error() {
        assert!(parameters(TEXT, "old").unwrap_err().contains("no `extern"));
        assert!(parameters(TEXT, "f").is_err());
        assert!(parameters(TEXT, "map").unwrap_err().contains("const float* const* lists"));
    }

    #[test]
    fn the_kernels_of_a_text_are_found_in_its_order() {
        assert_eq!(entries(TEXT), ["norm_fwd", "norm_bwd", "map", "empty", "first", "later"]);
    }
}
