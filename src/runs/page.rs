//! A page of its own: style sheet and charts within, no script, nothing fetched. What reports and experiments share.

pub use super::plot::{Chart, Line, Mark, Panel, Panels, Scale, escape};
use std::fmt::Write;

const STYLE: &str = include_str!("report.css");

/// The beginning of a page, up to its content: the browser is forbidden to fetch anything.
pub(super) fn head(title: &str) -> String {
    format!("{}<body><main>\n", head_of(title, "", ""))
}

/// A page that `live.js` beside it keeps up to date from `content`; without scripts it is fetched again every two seconds.
pub fn live(title: &str, version: &str, content: &str) -> String {
    let head = head_of(
        title,
        "; script-src 'self'; connect-src 'self'",
        "<script src=\"live.js\" defer></script>\
         <noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>",
    );
    format!(
        "{head}<body><p id=\"live\" class=\"live\" role=\"status\">Live</p>\
         <main data-version=\"{}\">\n{content}{TAIL}",
        escape(version)
    )
}

fn head_of(title: &str, policy: &str, more: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} – twoclocks</title>\n<style>{STYLE}</style>{more}</head>\n"
    )
}

/// The end of a page.
pub(super) const TAIL: &str = "</main></body></html>\n";

/// A page that is put together from the top.
#[derive(Clone, Debug)]
pub struct Page {
    html: String,
}

impl Page {
    /// A page with that heading.
    pub fn new(title: &str) -> Page {
        Page { html: format!("{}<header><h1>{}</h1></header>\n", head(title), escape(title)) }
    }

    /// A paragraph of text.
    pub fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.html, "<p>{}</p>", escape(text));
    }

    /// Charts beside each other, as many as there is room for.
    pub fn charts(&mut self, charts: &[Chart]) {
        self.html.push_str("<section class=\"plots\">\n");
        charts.iter().for_each(|chart| self.html.push_str(&chart.render()));
        self.html.push_str("</section>\n");
    }

    /// A table with a heading.
    pub fn table(&mut self, title: &str, columns: &[String], rows: &[Vec<String>]) {
        let _ = write!(
            self.html,
            "<section><h2>{}</h2><div class=\"wide\"><table><thead><tr>",
            escape(title)
        );
        columns.iter().for_each(|column| {
            let _ = write!(self.html, "<th>{}</th>", escape(column));
        });
        self.html.push_str("</tr></thead><tbody>\n");
        for row in rows {
            self.html.push_str("<tr>");
            row.iter().for_each(|cell| {
                let _ = write!(self.html, "<td>{}</td>", escape(cell));
            });
            self.html.push_str("</tr>\n");
        }
        self.html.push_str("</tbody></table></div></section>\n");
    }

    /// The whole page.
    pub fn html(&self) -> String {
        format!("{}{TAIL}", self.html)
    }
}
