//! PTX text into [`Unit`].

use std::collections::HashMap;

use super::lex::{Kind, Lexer, Token, line_of};
use super::syntax::{Entry, Line, Operand, Parameter, Register, Type, Unit, Variable};
use crate::error::{Error, Result};

/// Reads a translation unit.
pub(super) fn parse(source: &str) -> Result<Unit> {
    let mut lexer = Lexer::new(source);
    let token = lexer.next();
    let mut parser = Parser {
        source,
        lexer,
        token,
        last_end: 0,
        unit: Unit::default(),
        entry: Entry::default(),
        scopes: vec![],
        scope: 0,
        line_scopes: vec![],
        tables: vec![],
    };
    while parser.token.kind != Kind::End {
        parser.module_item()?;
    }
    Ok(parser.unit)
}

/// Names that braces open: registers one by one, ranges `%r<9>`, labels.
#[derive(Debug, Default)]
struct Scope<'a> {
    outer: Option<usize>,
    registers: HashMap<&'a str, Register>,
    ranges: HashMap<&'a str, (Register, u32)>,
    labels: HashMap<&'a str, usize>,
}

struct Parser<'a> {
    source: &'a str,
    lexer: Lexer<'a>,
    token: Token<'a>,
    last_end: usize,
    unit: Unit,
    entry: Entry,
    /// Every scope of the entry, open or closed; `scope` is the innermost open one.
    scopes: Vec<Scope<'a>>,
    scope: usize,
    /// The scope of each line of the entry.
    line_scopes: Vec<usize>,
    /// `.branchtargets` lists of the entry.
    tables: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> Parser<'a> {
    fn wrong(&self, what: &str) -> Error {
        let line = line_of(self.source, self.token.at);
        Error::driver(format!("ptx line {line}: {what}, found `{}`", self.token.text))
    }

    fn next(&mut self) -> Token<'a> {
        self.last_end = self.token.at + self.token.text.len();
        let next = self.lexer.next();
        std::mem::replace(&mut self.token, next)
    }

    fn is(&self, text: &str) -> bool {
        self.token.text == text && self.token.kind != Kind::Text
    }

    fn take(&mut self, text: &str) -> bool {
        let is = self.is(text);
        if is {
            self.next();
        }
        is
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        if self.take(text) { Ok(()) } else { Err(self.wrong(&format!("expected `{text}`"))) }
    }

    fn word(&mut self) -> Result<&'a str> {
        if self.token.kind == Kind::Word { Ok(self.next().text) } else { Err(self.wrong("expected a name")) }
    }

    fn number(&mut self) -> Result<usize> {
        match self.operand()? {
            Operand::Integer(n) => usize::try_from(n).map_err(|_| self.wrong("expected a size")),
            _ => Err(self.wrong("expected a number")),
        }
    }

    fn module_item(&mut self) -> Result<()> {
        let token = self.next();
        match token.text {
            ".version" | ".address_size" | ".file" | ".section" | ".pragma" | ".alias" => self.skip_line(),
            ".target" => {
                self.unit.target = self.word()?.into();
                while self.take(",") {
                    self.word()?;
                }
                Ok(())
            }
            ".visible" | ".extern" | ".weak" | ".common" => self.linked(token.text == ".extern"),
            ".entry" => self.entry(),
            ".func" => self.refuse_function(),
            ".global" | ".const" | ".shared" => self.module_variable(token.text, false),
            _ => Err(Error::driver(format!(
                "ptx line {}: `{}`: expected a directive that this emulator knows",
                line_of(self.source, token.at),
                token.text
            ))),
        }
    }

    fn linked(&mut self, is_extern: bool) -> Result<()> {
        let token = self.next();
        match token.text {
            ".entry" => self.entry(),
            ".func" => self.refuse_function(),
            ".global" | ".const" | ".shared" => self.module_variable(token.text, is_extern),
            _ => Err(self.wrong("expected .entry, .global, .const or .shared")),
        }
    }

    /// Declarations are harmless until a call; a body would need a stack.
    fn refuse_function(&mut self) -> Result<()> {
        while !self.is(";") && !self.is("{") && self.token.kind != Kind::End {
            self.next();
        }
        if self.take(";") { Ok(()) } else { Err(self.wrong("functions with a body are not emulated; inline them")) }
    }

    /// Skips directives that say nothing about execution: to the end of their line.
    fn skip_line(&mut self) -> Result<()> {
        let line = line_of(self.source, self.last_end);
        while self.token.kind != Kind::End && line_of(self.source, self.token.at) == line {
            if self.take("{") {
                while !self.take("}") && self.token.kind != Kind::End {
                    self.next();
                }
                return Ok(());
            }
            self.next();
        }
        Ok(())
    }

    fn module_variable(&mut self, space: &str, is_extern: bool) -> Result<()> {
        for mut variable in self.variables()? {
            variable.is_dynamic |= is_extern;
            let list = if space == ".shared" { &mut self.unit.shared } else { &mut self.unit.globals };
            list.push(variable);
        }
        Ok(())
    }

    /// `.align 16 .b8 name[64] = {..}, other;` after the state space.
    fn variables(&mut self) -> Result<Vec<Variable>> {
        let (mut align, mut lanes, mut found) = (None, 1, Vec::new());
        let ty = loop {
            match self.word()? {
                ".align" => align = Some(self.number()?),
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".attribute" | ".ptr" => return Err(self.wrong("expected a plain variable")),
                word => {
                    break Type::parse(word.trim_start_matches('.')).ok_or_else(|| self.wrong("expected a type"))?;
                }
            }
        };
        loop {
            let name = self.word()?;
            let mut variable = Variable {
                name: name.into(),
                bytes: ty.bytes() * lanes,
                align: align.unwrap_or(ty.bytes() * lanes).max(1),
                is_dynamic: false,
                initial: vec![],
                pointers: vec![],
            };
            while self.take("[") {
                if self.is("]") {
                    variable.is_dynamic = true;
                } else {
                    variable.bytes = variable.bytes.saturating_mul(self.number()?);
                }
                self.expect("]")?;
            }
            if self.take("=") {
                self.initializer(ty, &mut variable)?;
            }
            found.push(variable);
            if !self.take(",") {
                self.expect(";")?;
                return Ok(found);
            }
        }
    }

    fn initializer(&mut self, ty: Type, variable: &mut Variable) -> Result<()> {
        if self.take("{") {
            while !self.take("}") {
                self.initializer(ty, variable)?;
                self.take(",");
            }
            return Ok(());
        }
        // `generic(name)` is the generic address of a variable, which here is its address.
        let value = match self.operand()? {
            Operand::Symbol(name, _) if &*name == "generic" => {
                self.expect("(")?;
                let inner = self.operand()?;
                self.expect(")")?;
                inner
            }
            other => other,
        };
        let bits = match value {
            Operand::Integer(n) if ty == Type::F64 => (n as f64).to_bits(),
            Operand::Integer(n) if ty == Type::F32 => u64::from((n as f32).to_bits()),
            Operand::Integer(n) => n as u64,
            Operand::Bits32(n) => u64::from(n),
            Operand::Bits64(n) => n,
            Operand::Float(x) if ty == Type::F64 => x.to_bits(),
            Operand::Float(x) => u64::from((x as f32).to_bits()),
            Operand::Symbol(name, offset) => {
                variable.pointers.push((variable.initial.len(), name));
                offset as u64
            }
            _ => return Err(self.wrong("expected a constant")),
        };
        variable.initial.extend_from_slice(&bits.to_le_bytes()[..ty.bytes().min(8)]);
        Ok(())
    }

    fn entry(&mut self) -> Result<()> {
        self.entry = Entry { name: self.word()?.into(), ..Entry::default() };
        if self.take("(") {
            self.parameters()?;
        }
        loop {
            match self.token.text {
                "{" => break,
                ".maxntid" | ".reqntid" => {
                    let count = self.dimensions()?;
                    self.entry.max_threads = Some(count.iter().product());
                }
                ".reqnctapercluster" => self.entry.cluster = Some(self.dimensions()?),
                ".minnctapersm" | ".maxnctapersm" | ".maxnreg" | ".maxclusterrank" => drop(self.dimensions()?),
                ".explicitcluster" | ".noreturn" => drop(self.next()),
                ".pragma" => {
                    while !self.take(";") && self.token.kind != Kind::End {
                        self.next();
                    }
                }
                ";" => {
                    self.next();
                    return Ok(());
                }
                _ => return Err(self.wrong("expected the body of the entry")),
            }
        }
        (self.scopes, self.line_scopes, self.tables) = Default::default();
        self.block()?;
        self.resolve_labels();
        self.unit.entries.push(std::mem::take(&mut self.entry));
        Ok(())
    }

    fn dimensions(&mut self) -> Result<[u32; 3]> {
        self.next();
        let mut count = [1; 3];
        for slot in &mut count {
            *slot = u32::try_from(self.number()?).map_err(|_| self.wrong("expected a count of threads"))?;
            if !self.take(",") {
                break;
            }
        }
        Ok(count)
    }

    fn parameters(&mut self) -> Result<()> {
        let mut offset: usize = 0;
        while !self.take(")") {
            self.expect(".param")?;
            let (mut align, mut bytes) = (0, 0);
            let name = loop {
                match self.word()? {
                    ".align" => align = self.number()?,
                    ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                    word if word.starts_with('.') => {
                        let ty = Type::parse(&word[1..]).ok_or_else(|| self.wrong("expected a type"))?;
                        bytes = ty.bytes();
                    }
                    word => break word,
                }
                // The alignment after `.ptr` is that of what the pointer points to.
                if self.is(".align") && bytes > 0 {
                    self.next();
                    self.number()?;
                }
            };
            let align = if align == 0 { bytes.max(1) } else { align };
            if self.take("[") {
                bytes *= self.number()?;
                self.expect("]")?;
            }
            offset = offset.next_multiple_of(align);
            self.entry.parameters.push(Parameter { name: name.into(), bytes, align, offset });
            offset += bytes;
            self.take(",");
        }
        Ok(())
    }

    fn block(&mut self) -> Result<()> {
        self.expect("{")?;
        let outer = (!self.scopes.is_empty()).then_some(self.scope);
        self.scope = self.scopes.len();
        self.scopes.push(Scope { outer, ..Scope::default() });
        while !self.is("}") {
            if self.token.kind == Kind::End {
                return Err(self.wrong("expected `}`"));
            }
            self.statement()?;
        }
        self.next();
        self.scope = outer.unwrap_or(0);
        Ok(())
    }

    fn statement(&mut self) -> Result<()> {
        match self.token.text {
            "{" => self.block(),
            ";" => {
                self.next();
                Ok(())
            }
            ".reg" => self.registers(),
            ".shared" | ".local" => {
                let space = self.next().text;
                let found = self.variables()?;
                (if space == ".shared" { &mut self.entry.shared } else { &mut self.entry.local }).extend(found);
                Ok(())
            }
            ".loc" | ".file" => {
                self.next();
                self.skip_line()
            }
            ".pragma" => {
                while !self.take(";") && self.token.kind != Kind::End {
                    self.next();
                }
                Ok(())
            }
            "@" => self.guarded(),
            _ if self.token.kind == Kind::Word => {
                let start = self.token.at;
                let word = self.word()?;
                if self.take(":") { self.label(word) } else { self.instruction(None, word, start) }
            }
            _ => Err(self.wrong("expected an instruction")),
        }
    }

    fn label(&mut self, name: &'a str) -> Result<()> {
        if self.take(".branchtargets") {
            let mut targets = Vec::new();
            while !self.take(";") {
                targets.push(self.word()?);
                self.take(",");
            }
            self.tables.push((name, targets));
            return Ok(());
        }
        let line = self.entry.lines.len();
        self.scopes[self.scope].labels.insert(name, line);
        Ok(())
    }

    fn registers(&mut self) -> Result<()> {
        self.next();
        let word = self.word()?;
        if matches!(word, ".v2" | ".v4") {
            return Err(self.wrong("vector registers are not emulated"));
        }
        let ty = Type::parse(word.trim_start_matches('.')).ok_or_else(|| self.wrong("expected a register type"))?;
        loop {
            let name = self.word()?;
            let first = self.entry.registers.len() as Register;
            let is_range = self.take("<");
            let count = if is_range { self.number()? } else { 1 };
            if is_range {
                self.expect(">")?;
            }
            if count > 1 << 20 {
                return Err(self.wrong("expected fewer than a million registers"));
            }
            self.entry.registers.resize(first as usize + count, ty);
            let scope = &mut self.scopes[self.scope];
            if is_range {
                scope.ranges.insert(name, (first, count as u32));
            } else {
                scope.registers.insert(name, first);
            }
            if !self.take(",") {
                return self.expect(";");
            }
        }
    }

    fn find_register(&self, name: &str) -> Option<Register> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let mut at = Some(self.scope);
        while let Some(scope) = at.and_then(|i| self.scopes.get(i)) {
            at = scope.outer;
            if let Some(&r) = scope.registers.get(name) {
                return Some(r);
            }
            // `%r12` of `%r<20>`; a prefix may itself end in digits (`%p1<3>`), so every split is tried.
            for n in 1..=digits {
                let (prefix, index) = name.split_at(name.len() - n);
                if let (Some(&(first, count)), Ok(index)) = (scope.ranges.get(prefix), index.parse::<u32>())
                    && index < count
                {
                    return Some(first + index);
                }
            }
        }
        None
    }

    fn guarded(&mut self) -> Result<()> {
        let start = self.token.at;
        self.next();
        let is_negated = self.take("!");
        let name = self.word()?;
        let register = self.find_register(name).ok_or_else(|| self.wrong("expected a declared predicate"))?;
        let word = self.word()?;
        self.instruction(Some((register, is_negated)), word, start)
    }

    fn instruction(&mut self, guard: Option<(Register, bool)>, name: &str, start: usize) -> Result<()> {
        let mut operands = Vec::new();
        // A call lists results and arguments in brackets of its own.
        if name.split('.').next() == Some("call") {
            while !self.is(";") && self.token.kind != Kind::End {
                self.next();
            }
        }
        while !self.is(";") {
            operands.push(self.operand()?);
            if !self.take(",") && !self.is(";") {
                return Err(self.wrong("expected `,` or `;`"));
            }
        }
        let text = start..self.token.at;
        self.next();
        self.line_scopes.push(self.scope);
        self.entry.lines.push(Line { guard, name: name.into(), operands, text });
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand> {
        let first = self.single()?;
        if self.take("|") {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.single()?)));
        }
        Ok(first)
    }

    fn single(&mut self) -> Result<Operand> {
        let token = self.next();
        match (token.kind, token.text) {
            (Kind::Sign, "-") => match self.single()? {
                Operand::Integer(n) => Ok(Operand::Integer(-n)),
                Operand::Float(x) => Ok(Operand::Float(-x)),
                Operand::Bits32(b) => Ok(Operand::Bits32(b ^ 1 << 31)),
                Operand::Bits64(b) => Ok(Operand::Bits64(b ^ 1 << 63)),
                _ => Err(self.wrong("expected a number after `-`")),
            },
            (Kind::Sign, "!") => {
                let name = self.word()?;
                self.find_register(name).map(Operand::Not).ok_or_else(|| self.wrong("expected a predicate after `!`"))
            }
            (Kind::Sign, "{") => {
                let mut list = Vec::new();
                while !self.take("}") {
                    list.push(self.single()?);
                    self.take(",");
                }
                Ok(Operand::Vector(list))
            }
            (Kind::Sign, "[") => {
                let mut list = vec![self.single()?];
                let mut offset = 0;
                if self.is("+") || self.is("-") {
                    self.take("+");
                    let Operand::Integer(n) = self.single()? else { return Err(self.wrong("expected an offset")) };
                    offset = n as i64;
                }
                while self.take(",") {
                    list.push(self.single()?);
                }
                self.expect("]")?;
                Ok(Operand::Address(list, offset))
            }
            (Kind::Number, text) => number(text).ok_or_else(|| self.wrong("expected a number before")),
            (Kind::Word, "_") => Ok(Operand::Sink),
            (Kind::Word, "WARP_SZ") => Ok(Operand::Integer(32)),
            (Kind::Word, word) => self.named(word),
            _ => Err(self.wrong("expected an operand before")),
        }
    }

    fn named(&mut self, word: &'a str) -> Result<Operand> {
        if let Some(r) = self.find_register(word) {
            return Ok(Operand::Register(r));
        }
        if word.starts_with('%') {
            return Ok(Operand::Special(word.into()));
        }
        let mut offset = 0;
        if self.take("+") {
            let Operand::Integer(n) = self.single()? else { return Err(self.wrong("expected an offset")) };
            offset = n as i64;
        }
        Ok(Operand::Symbol(word.into(), offset))
    }

    /// Names of labels become places in the code: a label is visible in its scope and inside, also before it stands.
    fn resolve_labels(&mut self) {
        let find = |scopes: &[Scope], mut at: usize, name: &str| loop {
            if let Some(&line) = scopes[at].labels.get(name) {
                return Some(line);
            }
            at = scopes[at].outer?;
        };
        for (line, &scope) in self.entry.lines.iter_mut().zip(&self.line_scopes) {
            let table = self.tables.iter().find(|(name, _)| {
                line.operands.last().is_some_and(|o| matches!(o, Operand::Symbol(s, 0) if **s == **name))
            });
            if let Some((_, targets)) = table {
                let list = targets.iter().map(|t| find(&self.scopes, scope, t).map_or(Operand::Sink, Operand::Label));
                let list = Operand::Vector(list.collect());
                line.operands.pop();
                line.operands.push(list);
            }
            for operand in &mut line.operands {
                if let Operand::Symbol(name, 0) = operand
                    && let Some(target) = find(&self.scopes, scope, name)
                {
                    *operand = Operand::Label(target);
                }
            }
        }
    }
}

/// A literal: decimal, hexadecimal, octal, binary, the bits of a float, or a decimal float.
fn number(text: &str) -> Option<Operand> {
    let plain = text.strip_suffix('U').unwrap_or(text);
    if let Some(bits) = plain.strip_prefix("0f").or(plain.strip_prefix("0F")) {
        return u32::from_str_radix(bits, 16).ok().map(Operand::Bits32);
    }
    if let Some(bits) = plain.strip_prefix("0d").or(plain.strip_prefix("0D")) {
        return u64::from_str_radix(bits, 16).ok().map(Operand::Bits64);
    }
    let radix = |prefix: [&str; 2], radix| {
        let digits = plain.strip_prefix(prefix[0]).or(plain.strip_prefix(prefix[1]))?;
        i128::from_str_radix(digits, radix).ok().map(Operand::Integer)
    };
    if let Some(n) = radix(["0x", "0X"], 16).or_else(|| radix(["0b", "0B"], 2)) {
        return Some(n);
    }
    if plain.len() > 1 && plain.starts_with('0') && plain.bytes().all(|b| b.is_ascii_digit()) {
        return i128::from_str_radix(plain, 8).ok().map(Operand::Integer);
    }
    plain.parse().map(Operand::Integer).or_else(|_| plain.parse().map(Operand::Float)).ok()
}
