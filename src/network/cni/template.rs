//! Templates of configurations, for nodes whose pod addresses only the cluster knows: the part of Go's `text/template`
//! that such templates are written in. Pure.
//!
//! ```text
//! {{.PodCIDR}}                              the first range
//! {{range .PodCIDRRanges}}{{.}}{{end}}      all ranges; also `range $i, $range := .PodCIDRRanges`, and `{{else}}`
//! {{range .Routes}}{{.}}{{end}}             0.0.0.0/0, ::/0 or both, as there are ranges of the family
//! {{if $i}}, {{end}}                        a number that is not 0, a text or a list that is not empty; `{{else}}`
//! {{$range}}  {{- trimmed -}}  {{/* a remark */}}
//! ```

use std::iter::Peekable;
use std::vec::IntoIter;

use ipnet::IpNet;

/// Why a template cannot be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{{` without `}}`.
    #[error("line {line}: \"{{{{\" is not closed by \"}}}}\"")]
    Unclosed {
        /// Where.
        line: usize,
    },
    /// Something else of Go's.
    #[error(
        "line {line}: {{{{{action}}}}} is not supported: there are .PodCIDR, .PodCIDRRanges, .Routes, variables, range, \
         if, else and end"
    )]
    Unsupported {
        /// Where.
        line: usize,
        /// What.
        action: String,
    },
    /// A variable that no `range` around has set.
    #[error("line {line}: {name} is not set there")]
    Unset {
        /// Where.
        line: usize,
        /// Which.
        name: String,
    },
    /// `end` or `else` of nothing.
    #[error("line {line}: {{{{{action}}}}} ends no range and no if")]
    Unopened {
        /// Where.
        line: usize,
        /// Which.
        action: String,
    },
    /// A range or condition without an end.
    #[error("line {line}: {{{{{action}}}}} has no {{{{end}}}}")]
    Endless {
        /// Where.
        line: usize,
        /// Which.
        action: String,
    },
}

/// What a template is filled with.
#[derive(Debug, Clone)]
pub struct Data {
    ranges: Vec<String>,
    routes: Vec<String>,
}

impl Data {
    /// Makes the data of a node's ranges of pod addresses.
    pub fn new(ranges: &[IpNet]) -> Self {
        let of = |default: &str, any: bool| any.then(|| default.to_owned());
        let ipv4 = of("0.0.0.0/0", ranges.iter().any(|range| range.addr().is_ipv4()));
        let ipv6 = of("::/0", ranges.iter().any(|range| range.addr().is_ipv6()));
        Self { ranges: ranges.iter().map(IpNet::to_string).collect(), routes: ipv4.into_iter().chain(ipv6).collect() }
    }
}

/// Fills a template.
///
/// # Errors
/// What is wrong with it, and in which line.
pub fn fill(template: &str, data: &Data) -> Result<String, TemplateError> {
    let mut tokens = tokens(template)?.into_iter().peekable();
    let nodes = parse(&mut tokens)?;
    if let Some(Token::Action { line, text }) = tokens.next() {
        return Err(TemplateError::Unopened { line, action: text });
    }
    let mut output = String::new();
    write(&nodes, data, &mut Vec::new(), &mut output)?;
    Ok(output)
}

#[derive(Debug)]
enum Token {
    Text(String),
    Action { line: usize, text: String },
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print {
        line: usize,
        what: String,
    },
    If {
        line: usize,
        what: String,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        line: usize,
        index: Option<String>,
        element: Option<String>,
        what: String,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// What an expression is.
#[derive(Debug, Clone)]
enum Value {
    Number(usize),
    Text(String),
    List(Vec<String>),
}

/// A variable, "." among them, and its value.
type Scope = Vec<(String, Value)>;

fn tokens(template: &str) -> Result<Vec<Token>, TemplateError> {
    let (mut tokens, mut rest, mut line) = (Vec::new(), template, 1);
    let mut trims = false;
    while let Some(start) = rest.find("{{") {
        let (mut text, behind) = (&rest[..start], &rest[start + 2..]);
        line += text.matches('\n').count();
        let end = behind.find("}}").ok_or(TemplateError::Unclosed { line })?;
        let mut action = &behind[..end];
        if std::mem::take(&mut trims) {
            text = text.trim_start();
        }
        if let Some(trimmed) = action.strip_prefix('-').filter(|next| next.starts_with(char::is_whitespace)) {
            (action, text) = (trimmed, text.trim_end());
        }
        if let Some(trimmed) = action.strip_suffix('-').filter(|before| before.ends_with(char::is_whitespace)) {
            (action, trims) = (trimmed, true);
        }
        tokens.push(Token::Text(text.to_owned()));
        let words = action.trim();
        if !(words.starts_with("/*") && words.ends_with("*/")) {
            tokens.push(Token::Action { line, text: words.split_whitespace().collect::<Vec<_>>().join(" ") });
        }
        line += behind[..end].matches('\n').count();
        rest = &behind[end + 2..];
    }
    tokens.push(Token::Text(if trims { rest.trim_start() } else { rest }.to_owned()));
    Ok(tokens)
}

/// Parses up to the end, or to an `end` or `else` that is not this level's.
fn parse(tokens: &mut Peekable<IntoIter<Token>>) -> Result<Vec<Node>, TemplateError> {
    let mut nodes = Vec::new();
    loop {
        match tokens.peek() {
            None => return Ok(nodes),
            Some(Token::Action { text, .. }) if text == "end" || text == "else" => return Ok(nodes),
            Some(_) => {}
        }
        match tokens.next() {
            None => return Ok(nodes),
            Some(Token::Text(text)) => nodes.push(Node::Text(text)),
            Some(Token::Action { line, text }) => nodes.push(action(line, &text, tokens)?),
        }
    }
}

fn action(line: usize, text: &str, tokens: &mut Peekable<IntoIter<Token>>) -> Result<Node, TemplateError> {
    if let Some(what) = text.strip_prefix("if ") {
        let what = expression(line, text, what)?;
        let (then, otherwise) = branches(line, text, tokens)?;
        return Ok(Node::If { line, what, then, otherwise });
    }
    if let Some(range) = text.strip_prefix("range ") {
        let (names, what) = range.split_once(":=").map_or(("", range), |(names, what)| (names, what.trim()));
        let names: Vec<_> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        let (index, element) = match names[..] {
            [] => (None, None),
            [element] => (None, Some(element)),
            [index, element] => (Some(index), Some(element)),
            _ => return Err(unsupported(line, text)),
        };
        if names.iter().any(|name| !name.starts_with('$')) {
            return Err(unsupported(line, text));
        }
        let what = expression(line, text, what)?;
        let (then, otherwise) = branches(line, text, tokens)?;
        let owned = |name: Option<&str>| name.map(str::to_owned);
        return Ok(Node::Range { line, index: owned(index), element: owned(element), what, then, otherwise });
    }
    Ok(Node::Print { line, what: expression(line, text, text)? })
}

fn branches(
    line: usize,
    text: &str,
    tokens: &mut Peekable<IntoIter<Token>>,
) -> Result<(Vec<Node>, Vec<Node>), TemplateError> {
    let endless = || TemplateError::Endless { line, action: text.to_owned() };
    let then = parse(tokens)?;
    let Some(Token::Action { text: ending, .. }) = tokens.next() else { return Err(endless()) };
    if ending == "end" {
        return Ok((then, Vec::new()));
    }
    let otherwise = parse(tokens)?;
    match tokens.next() {
        Some(Token::Action { text, .. }) if text == "end" => Ok((then, otherwise)),
        Some(Token::Action { line, text }) => Err(TemplateError::Unopened { line, action: text }),
        _ => Err(endless()),
    }
}

/// Checks that a word is a value that there can be.
fn expression(line: usize, action: &str, word: &str) -> Result<String, TemplateError> {
    let known = matches!(word, "." | ".PodCIDR" | ".PodCIDRRanges" | ".Routes");
    let variable = word.strip_prefix('$').is_some_and(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_'));
    if known || variable { Ok(word.to_owned()) } else { Err(unsupported(line, action)) }
}

fn unsupported(line: usize, action: &str) -> TemplateError {
    TemplateError::Unsupported { line, action: action.to_owned() }
}

fn value(line: usize, what: &str, data: &Data, scope: &Scope) -> Result<Value, TemplateError> {
    match what {
        ".PodCIDR" => Ok(Value::Text(data.ranges.first().cloned().unwrap_or_default())),
        ".PodCIDRRanges" => Ok(Value::List(data.ranges.clone())),
        ".Routes" => Ok(Value::List(data.routes.clone())),
        name => {
            let set = scope.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            set.ok_or_else(|| TemplateError::Unset { line, name: name.to_owned() })
        }
    }
}

fn write(nodes: &[Node], data: &Data, scope: &mut Scope, output: &mut String) -> Result<(), TemplateError> {
    for node in nodes {
        match node {
            Node::Text(text) => output.push_str(text),
            Node::Print { line, what } => match value(*line, what, data, scope)? {
                Value::Number(number) => output.push_str(&number.to_string()),
                Value::Text(text) => output.push_str(&text),
                // As Go prints one.
                Value::List(all) => output.push_str(&format!("[{}]", all.join(" "))),
            },
            Node::If { line, what, then, otherwise } => {
                let holds = match value(*line, what, data, scope)? {
                    Value::Number(number) => number != 0,
                    Value::Text(text) => !text.is_empty(),
                    Value::List(all) => !all.is_empty(),
                };
                write(if holds { then } else { otherwise }, data, scope, output)?;
            }
            Node::Range { line, index, element, what, then, otherwise } => {
                let Value::List(all) = value(*line, what, data, scope)? else {
                    return Err(unsupported(*line, &format!("range {what}")));
                };
                if all.is_empty() {
                    write(otherwise, data, scope, output)?;
                }
                for (number, text) in all.into_iter().enumerate() {
                    let outer = scope.len();
                    scope.push((".".to_owned(), Value::Text(text.clone())));
                    scope.extend(element.clone().map(|name| (name, Value::Text(text))));
                    scope.extend(index.clone().map(|name| (name, Value::Number(number))));
                    write(then, data, scope, output)?;
                    scope.truncate(outer);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(ranges: &[&str]) -> Data {
        Data::new(&ranges.iter().map(|range| range.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn a_dual_stack_template_is_filled() {
        let template = r#"{ {{- /* made for the node */ -}} "subnet": "{{.PodCIDR}}",
  "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
  "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{ $route }}"}{{end}}]}"#;
        assert_eq!(
            fill(template, &data(&["10.1.0.0/24", "fd01::/64"])).unwrap(),
            r#"{"subnet": "10.1.0.0/24",
  "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]],
  "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}"#
        );
        assert!(fill(template, &data(&["fd01::/64"])).unwrap().contains(r#""routes": [{"dst": "::/0"}]"#));
    }

    #[test]
    fn branches_and_dots_are_gos() {
        let two = data(&["10.1.0.0/24", "10.2.0.0/24"]);
        for (template, expected) in [
            ("{{range .PodCIDRRanges}}<{{.}}>{{end}}", "<10.1.0.0/24><10.2.0.0/24>"),
            ("{{range $r := .PodCIDRRanges}}{{$r}};{{end}}", "10.1.0.0/24;10.2.0.0/24;"),
            ("{{range $i, $r := .Routes}}{{if $i}}more{{else}}first{{end}}{{end}}", "first"),
            ("{{if .PodCIDR}}a{{- \"x\" | never}}", ""),
            ("{{.PodCIDRRanges}}", "[10.1.0.0/24 10.2.0.0/24]"),
            ("a \n {{- if .PodCIDR -}} \n b {{end}}", "ab "),
        ] {
            match fill(template, &two) {
                Ok(text) => assert_eq!(text, expected, "{template}"),
                Err(error) => assert!(expected.is_empty(), "{template}: {error}"),
            }
        }
        assert_eq!(fill("{{range .Routes}}x{{else}}none{{end}}", &data(&[])).unwrap(), "none");
    }

    #[test]
    fn what_is_not_supported_is_named_with_its_line() {
        let cases = [
            ("\n{{index .PodCIDRRanges 0}}", "line 2: {{index .PodCIDRRanges 0}} is not supported: there are .PodCIDR"),
            ("{{.PodCIDR | printf \"%s\"}}", "line 1: {{.PodCIDR | printf \"%s\"}} is not supported"),
            ("{{$x}}", "line 1: $x is not set there"),
            ("a\n{{.PodCIDR", "line 2: \"{{\" is not closed by \"}}\""),
            ("{{end}}", "line 1: {{end}} ends no range and no if"),
            ("{{if .Routes}}", "line 1: {{if .Routes}} has no {{end}}"),
            ("{{if .Routes}}{{else}}{{else}}{{end}}", "line 1: {{else}} ends no range and no if"),
            ("{{range .PodCIDR}}{{end}}", "line 1: {{range .PodCIDR}} is not supported"),
        ];
        for (template, expected) in cases {
            let error = fill(template, &data(&["10.1.0.0/24"])).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{template}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_template_panics_and_plain_text_stays(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("{{range .Routes}}"), Just("{{end}}"), Just("{{else}}"), Just("{{-"), Just("-}}"), Just("{{"),
                    Just("}}"), Just("{{if .PodCIDR}}"), Just("{{.}}"), Just(" é\n"), Just("{{/* */}}"), Just("$x"),
                ],
                0..12,
            ),
            plain in "[^{}]*",
        ) {
            let data = data(&["10.1.0.0/24"]);
            drop(fill(&pieces.concat(), &data));
            prop_assert_eq!(fill(&plain, &data).unwrap(), plain);
        }
    }
}
