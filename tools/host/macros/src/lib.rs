// SPDX-License-Identifier: GPL-2.0

//! The attribute macros that the kernel's prelude has, as far as the host needs them.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Marks a structure that is initialised in its place. On the host it may be moved until it has
/// been, so all that is left to do is to take the `#[pin]` off its fields.
#[proc_macro_attribute]
pub fn pin_data(_args: TokenStream, item: TokenStream) -> TokenStream {
    let mut tokens = item.into_iter().peekable();
    let mut out = TokenStream::new();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(p) if p.as_char() == '#' => {
                let is_pin = matches!(tokens.peek(), Some(TokenTree::Group(g))
                    if g.delimiter() == Delimiter::Bracket && g.stream().to_string() == "pin");
                if is_pin {
                    tokens.next();
                } else {
                    out.extend([TokenTree::Punct(p)]);
                }
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let fields = pin_data(TokenStream::new(), group.stream());
                out.extend([TokenTree::Group(Group::new(Delimiter::Brace, fields))]);
            }
            other => out.extend([other]),
        }
    }
    out
}
