//! What keys do in the live view. Pure: a key in, a wish out.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Lines that a page moves.
const PAGE: usize = 10;

/// What is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Page {
    /// A line for each machine.
    #[default]
    List,
    /// All of one machine, by its number on the board.
    Details(u64),
    /// What the keys do.
    Help,
}

/// What the person at the terminal wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Draw,
    /// Write the log to a file.
    Save,
    /// Stop as a shell's job does.
    Suspend,
    /// Leave the view, and go on with lines: the keyboard has gone.
    Lines,
    /// Close everything.
    Quit,
}

/// Where the person is in it.
#[derive(Debug, Default)]
pub struct State {
    /// What is shown.
    pub page: Page,
    /// The machine that is chosen in the list, by its number on the board; none: whichever stands first.
    pub chosen: Option<u64>,
    /// The list in its order, by the same numbers; kept right by whoever draws.
    pub order: Vec<u64>,
    /// The first line of the list that is shown; kept right by whoever draws.
    pub top: usize,
    /// Lines of the details that are scrolled past; kept right by whoever draws.
    pub scroll: usize,
    /// Said until the next key.
    pub notice: Option<String>,
}

impl State {
    /// The line of the list that is chosen, from 0.
    #[must_use]
    pub fn line(&self) -> usize {
        let chosen = self.chosen;
        self.order.iter().position(|id| Some(*id) == chosen).unwrap_or_default()
    }

    /// A key, or another size of the terminal.
    pub fn typed(&mut self, event: &Event) -> Wish {
        let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return Wish::Draw };
        if *kind == KeyEventKind::Release {
            return Wish::Draw;
        }
        self.notice = None;
        if modifiers.contains(KeyModifiers::CONTROL) {
            return match code {
                KeyCode::Char('c' | 'd') => Wish::Quit,
                KeyCode::Char('z') => Wish::Suspend,
                _ => Wish::Draw,
            };
        }
        match (self.page, code) {
            (_, KeyCode::Char('q')) => return Wish::Quit,
            (_, KeyCode::Char('l')) => return Wish::Save,
            (Page::Help, _) => self.page = Page::List,
            (_, KeyCode::Char('?' | 'h')) => self.page = Page::Help,
            (Page::List, KeyCode::Enter | KeyCode::Right) => {
                if let Some(id) = self.order.get(self.line()) {
                    (self.page, self.scroll) = (Page::Details(*id), 0);
                }
            }
            (
                Page::Details(_),
                KeyCode::Enter | KeyCode::Esc | KeyCode::Left | KeyCode::Backspace,
            ) => {
                self.page = Page::List;
            }
            (_, KeyCode::Up | KeyCode::Char('k')) => self.go(|at| at.saturating_sub(1)),
            (_, KeyCode::Down | KeyCode::Char('j')) => self.go(|at| at.saturating_add(1)),
            (_, KeyCode::PageUp) => self.go(|at| at.saturating_sub(PAGE)),
            (_, KeyCode::PageDown | KeyCode::Char(' ')) => self.go(|at| at.saturating_add(PAGE)),
            (Page::List, KeyCode::Home | KeyCode::Char('g')) => self.chosen = None,
            (_, KeyCode::Home | KeyCode::Char('g')) => self.go(|_| 0),
            (_, KeyCode::End | KeyCode::Char('G')) => self.go(|_| usize::MAX),
            _ => {}
        }
        Wish::Draw
    }

    fn go(&mut self, to: impl Fn(usize) -> usize) {
        match self.page {
            Page::List => {
                let last = self.order.len().saturating_sub(1);
                self.chosen = self.order.get(to(self.line()).min(last)).copied();
            }
            // Whoever draws knows how many lines there are.
            Page::Details(_) => self.scroll = to(self.scroll),
            Page::Help => {}
        }
    }
}
