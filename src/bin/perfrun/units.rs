//! Numbers for people.

/// `1.23 ms`: three digits and a unit.
pub(crate) fn seconds(s: f64) -> String {
    let (value, unit) = match s {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s if s >= 1e-6 => (s * 1e6, "µs"),
        s => (s * 1e9, "ns"),
    };
    format!("{} {unit}", three_digits(value))
}

/// `12 s`, `3:05 min`, `1:02:05 h`: how long something will take.
pub(crate) fn duration(s: f64) -> String {
    let whole = s.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes}:{seconds:02} min"),
        _ => format!("{hours}:{minutes:02}:{seconds:02} h"),
    }
}

/// `1.50 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (n.max(1).ilog2() / 10) as usize;
    let unit = units.get(power).copied().unwrap_or("EiB");
    if power == 0 {
        format!("{n} B")
    } else {
        format!("{} {unit}", three_digits(n as f64 / 1024f64.powi(power as i32)))
    }
}

/// Three significant digits for 1 to 1000, more before the point where there are more.
pub(crate) fn three_digits(x: f64) -> String {
    let places = if x >= 99.95 {
        0
    } else if x >= 9.995 {
        1
    } else {
        2
    };
    format!("{x:.places$}")
}

/// `482 G`: operations, or a rate of them, in powers of a thousand.
pub(crate) fn flops(n: f64) -> String {
    let units = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut power = 0;
    let mut value = n;
    while value >= 999.5 && power + 1 < units.len() {
        value /= 1000.0;
        power += 1;
    }
    let digits = if power == 0 && value.fract() == 0.0 { format!("{value}") } else { three_digits(value) };
    format!("{digits} {}", units[power]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_three_digits_and_a_unit() {
        assert_eq!(seconds(12.345), "12.3 s");
        assert_eq!(seconds(0.0012345), "1.23 ms");
        assert_eq!(seconds(0.00099999), "1000 µs");
        assert_eq!(seconds(2.5e-8), "25.0 ns");
        assert_eq!((flops(0.0).as_str(), flops(999.0).as_str(), flops(482.3e9).as_str()), ("0", "999", "482 G"));
        assert_eq!((flops(999.6).as_str(), flops(3e30).as_str()), ("1.00 k", "3000000 Y"));
        assert_eq!([0.4, 59.6, 3599.0, 1e5].map(duration), ["0 s", "1:00 min", "59:59 min", "27:46:40 h"]);
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
