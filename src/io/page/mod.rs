//! A report as one HTML file that needs no network: headings, tables that sort and fold, plots as SVG. Everything that a
//! caller gives is text and is escaped; the only script is a few lines of its own, which the page works without.

mod plot;
mod table;

use crate::error::Result;
use crate::io::png::{self, Picture};

pub use plot::{Axis, Plot, Point, Series, Tick};
pub use table::{Cell, Column, Entry, Table};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A page that grows from top to bottom.
///
/// ```
/// use perfrun::io::page::{Axis, Page, Plot, Point, Series};
///
/// let mut page = Page::new("Losses");
/// page.paragraph("Of two runs.");
/// let line = Series::line("base", vec![Point::new(1.0, 2.5), Point::new(10.0, 0.9)]);
/// page.plot(&Plot::new("Loss by step", Axis::log("step"), Axis::linear("loss")).with(line));
/// assert!(page.finish().contains("<svg"));
/// ```
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty page.
    pub fn new(title: &str) -> Page {
        Page { title: title.to_owned(), body: String::new() }
    }

    /// A heading above what follows.
    pub fn heading(&mut self, text: &str) {
        self.body += &format!("<h2>{}</h2>\n", escape(text));
    }

    /// Some sentences.
    pub fn paragraph(&mut self, text: &str) {
        self.body += &format!("<p>{}</p>\n", escape(text));
    }

    /// Names with their values, side by side: what a reader looks for first.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        let one =
            |(name, value): &(&str, String)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        self.body += &format!("<dl>{}</dl>\n", facts.iter().map(one).collect::<String>());
    }

    /// A table; one whose entries have depths is a tree that folds.
    pub fn table(&mut self, table: &Table) {
        self.body += &table.html();
    }

    /// A plot.
    pub fn plot(&mut self, plot: &Plot) {
        self.body += &plot.svg();
    }

    /// A picture with words below it.
    ///
    /// # Errors
    /// As [`png::encode`].
    pub fn picture(&mut self, caption: &str, picture: &Picture) -> Result<()> {
        let (caption, bytes) = (escape(caption), base64(&png::encode(picture)?));
        self.body += &format!(
            "<figure><img alt=\"{caption}\" src=\"data:image/png;base64,{bytes}\"><figcaption>{caption}</figcaption></figure>\n"
        );
        Ok(())
    }

    /// The whole file.
    pub fn finish(self) -> String {
        let title = escape(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
             <body>\n<h1>{title}</h1>\n{}<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
            self.body
        )
    }
}

/// Bytes as text (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = [16, 8, 0].iter().zip(three).fold(0_u32, |word, (shift, &b)| word | u32::from(b) << shift);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let sign = SIGNS.get((word >> shift & 63) as usize).filter(|_| place <= three.len());
            out.push(sign.map_or('=', |&sign| char::from(sign)));
        }
    }
    out
}

/// Text as it stands in HTML and in attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_caller_gives_stays_text() {
        let evil = "</script><script>alert('x')</script>&";
        let mut page = Page::new(evil);
        page.heading(evil);
        page.paragraph(evil);
        page.facts(&[(evil, evil.to_owned())]);
        page.table(&Table::new([Column::text(evil)]).with(Entry::new([Cell::text(evil)])));
        let series = Series::points(evil, vec![Point::new(1.0, 1.0).labelled(evil)]);
        page.plot(&Plot::new(evil, Axis::log(evil), Axis::linear(evil)).with(series));
        let html = page.finish();
        assert_eq!(html.matches("<script>").count(), 1, "{html}");
        assert_eq!(html.matches("</script>").count(), 1);
        assert!(html.contains("&lt;/script&gt;"));
    }

    #[test]
    fn a_picture_lies_in_the_page_itself() {
        let texts = [&b""[..], b"f", b"fo", b"foo", b"foob", b"fooba", b"foobar"].map(base64);
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        let mut page = Page::new("t");
        page.picture("a < b", &Picture { height: 1, width: 2, rgb: vec![0; 6] }).unwrap();
        assert!(page.picture("", &Picture { height: 1, width: 2, rgb: vec![0; 5] }).is_err());
        let html = page.finish();
        assert!(
            html.contains("src=\"data:image/png;base64,iVBORw0KGgo") && html.contains("alt=\"a &lt; b\""),
            "{html}"
        );
    }

    #[test]
    fn a_page_refers_to_nothing_outside_of_itself() {
        let mut page = Page::new("t");
        page.table(&Table::new([Column::text("a"), Column::number("b")]));
        page.plot(&Plot::new("p", Axis::linear("x"), Axis::linear("y")));
        let html = page.finish();
        for word in ["http:", "https:", "src=", "href=", "url(", "@import", "fetch("] {
            assert!(!html.contains(word), "{word}");
        }
    }
}
