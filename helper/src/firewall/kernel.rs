//! The firewall of the running kernel: opens, closes, repairs, sweeps.
//!
//! Guarantees: every change of the ruleset is one transaction on the state that was read (another
//! change in between: read again). A lease is closed first and tidied up after. Our table stands
//! from the first lease until none is open and no process holds a socket of one: until then it
//! keeps the sockets of ended leases deaf and mute. Trusts: the kernel.

use std::{collections::BTreeMap, io, time::Instant};

use super::{
    Backend, Dhcp, Firewall, FirewallError, Opening, Standing,
    firewalld::Admission,
    host::{self, Chain, Rule},
    nft::{self, Change, Family, Path, Ruleset, Table},
    table,
};
use crate::{
    config::Config,
    limits, log,
    mark::{LeaseMark, Marks},
    sockdiag,
};

/// nf_tables, through one netlink socket that owns our table.
pub struct Nftables {
    ruleset: Ruleset,
    marks: Marks,
    named: Option<Path<'static>>,
    legacy: bool,
    open: BTreeMap<LeaseMark, Open>,
}

/// What stands outside of our table for an open lease.
struct Open {
    /// The chain that its rules were put into; none where there was no firewall.
    found: Option<Found>,
    /// What firewalld was asked for.
    admission: Option<Admission>,
    /// When broadcasts were last let in for a raw socket.
    heard: Instant,
}

/// A chain as it was when it was last found whole, or the rules of a lease were put into it.
#[derive(Clone, Copy)]
struct Found {
    path: Path<'static>,
    /// Which very chain it is: the handles of its table and its own, which are never used again. A
    /// reload makes others.
    handles: (u64, u64),
    /// The highest handle of the host's own rules: those that came later have higher ones. Rules of
    /// leases come and go as users like, and say nothing about the host's firewall.
    newest: u64,
}

impl Found {
    fn is_same(now: Option<Self>, before: Option<Self>) -> bool {
        now.map(|one| (one.path, one.handles)) == before.map(|one| (one.path, one.handles))
    }
}

/// What was found in one reading of the ruleset.
struct Survey {
    /// The socket that owns our table, if that is there and has an owner: one that was restored from
    /// a listing has none, and is of no use to anybody.
    owner: Option<Option<u32>>,
    listing: Vec<(Chain, Vec<Rule>)>,
    /// Which firewall this is, and the chain that rules go into; or why it cannot be opened.
    judged: Result<(Backend, Option<Found>), String>,
}

impl Survey {
    fn rules(&self, path: Path<'_>) -> &[Rule] {
        let found = self.listing.iter().find(|(chain, _)| chain.path() == path);
        found.map_or(&[], |(_, rules)| rules)
    }
}

fn hosts_own(rules: &[Rule]) -> impl Iterator<Item = &Rule> {
    rules.iter().filter(|rule| rule.lease.is_none())
}

fn kernel(step: &'static str) -> impl Fn(io::Error) -> FirewallError {
    move |source| FirewallError::Kernel { step, source }
}

fn busy() -> io::Error {
    io::Error::other("others keep changing the firewall at the same time: try again")
}

/// A rule that the kernel does not know is one whose module it lacks and may not load by itself.
/// (What a transaction names is there: it is for the ruleset that was read.)
fn name_modules(error: FirewallError) -> FirewallError {
    match error {
        FirewallError::Kernel { step, source }
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) =>
        {
            FirewallError::Unsupported(format!(
                "the kernel did not {step} ({source}): it lacks a part of nf_tables. Load the \
                 modules nft_socket, nf_socket_ipv4, nft_fib_inet, nft_ct and nft_reject_inet, at \
                 each start of this host (modules-load.d(5); on NixOS boot.kernelModules)"
            ))
        }
        other => other,
    }
}

impl Nftables {
    /// Opens the netlink socket. Changes nothing.
    ///
    /// # Errors
    /// `Kernel` when there is no nf_tables or no permission.
    pub fn new(config: &Config) -> Result<Self, FirewallError> {
        Ok(Self {
            ruleset: Ruleset::open().map_err(kernel("open a netlink socket"))?,
            marks: config.marks,
            named: config.chain.as_ref().map(host::named),
            legacy: host::has_legacy_filter(),
            open: BTreeMap::new(),
        })
    }

    /// The ruleset at one moment, and the generation that it had: read again while it changes,
    /// since a reload that is half read looks like a revocation.
    fn survey(&mut self) -> Result<(u32, Survey), FirewallError> {
        let error = kernel("list the firewall");
        for _ in 0..limits::COMMIT_ATTEMPTS {
            let generation = self.ruleset.generation().map_err(&error)?;
            let survey = self.read().map_err(&error)?;
            if self.ruleset.generation().map_err(&error)? == generation {
                return Ok((generation, survey));
            }
        }
        Err(error(busy()))
    }

    fn read(&mut self) -> io::Result<Survey> {
        let tables = self.ruleset.list(nft::GET_TABLE, Family::ALL, &[], Table::read)?;
        let mut listing = Vec::new();
        for chain in self.ruleset.list(nft::GET_CHAIN, Family::ALL, &[], Chain::read)? {
            if host::decisive(&chain, self.named) {
                let of = [chain.table.as_str(), &chain.name];
                let rules = self.ruleset.list(nft::GET_RULE, chain.family, &of, Rule::read)?;
                listing.push((chain, rules));
            }
        }
        let table = |family, name: &str| {
            tables.iter().find(move |table| table.family == family && table.name == name)
        };
        let found = |path: Path<'static>| {
            let (chain, rules) = listing.iter().find(|(chain, _)| chain.path() == path)?;
            let handles = (table(path.family, path.table)?.handle, chain.handle);
            let newest = hosts_own(rules).map(|rule| rule.handle).max().unwrap_or(0);
            Some(Found { path, handles, newest })
        };
        let judged = host::judge(&listing, self.named, self.legacy);
        let judged = judged.map(|(backend, path)| (backend, path.and_then(found)));
        let owner = table(table::FAMILY, table::NAME).map(|table| table.owner);
        Ok(Survey { owner, listing, judged })
    }

    /// Reads, plans and commits, again and again while others change the ruleset in between; never
    /// while another helper holds our table.
    fn transact<T>(
        &mut self,
        step: &'static str,
        plan: impl Fn(&Self, &Survey) -> Result<(Vec<Change>, T), FirewallError>,
    ) -> Result<T, FirewallError> {
        let error = kernel(step);
        for _ in 0..limits::COMMIT_ATTEMPTS {
            let (generation, survey) = self.survey()?;
            if survey.owner.flatten().is_some_and(|owner| owner != self.ruleset.owner) {
                return Err(FirewallError::AnotherHelper);
            }
            let (changes, outcome) = plan(self, &survey)?;
            if changes.is_empty() {
                return Ok(outcome);
            }
            match self.ruleset.commit(&changes, Some(generation)) {
                Ok(()) => return Ok(outcome),
                Err(refused) if refused.raw_os_error() == Some(libc::ERESTART) => {}
                Err(refused) => return Err(error(refused)),
            }
        }
        Err(error(busy()))
    }

    /// What deletes every rule of a lease that is not open, wherever it stands. `own`: the rules of
    /// our table.
    fn leftovers(&self, survey: &Survey, own: &[Rule]) -> Vec<Change> {
        let ended = |slot| self.open.keys().all(|mark| mark.slot.get() != slot);
        let listed = survey.listing.iter().flat_map(|(_, rules)| rules);
        host::delete_rules(own.iter().chain(listed), ended)
    }

    /// The rules of our table, if it is there. Nobody else can change it: it is read before the
    /// rest, so that the time between reading and committing is short.
    fn own_rules(&mut self) -> Result<Vec<Rule>, FirewallError> {
        let rules = self.ruleset.list(nft::GET_RULE, table::FAMILY, &[table::NAME], Rule::read);
        rules.map_err(kernel("list its own table"))
    }

    /// Has firewalld let a lease's ports in (again), if it is what decides.
    fn ask_firewalld(&mut self, backend: Backend, opening: &Opening) -> Result<(), FirewallError> {
        let Some(open) = self.open.get_mut(&opening.mark) else {
            return Ok(());
        };
        // Those that stand are kept, to be closed or asked for again, if the next are not granted.
        let new = match backend {
            Backend::Firewalld => Some(Admission::ask(opening, open.admission.as_ref())?),
            _ => None,
        };
        // They may have gone already, with a reload, and have their time in any case.
        let _ = std::mem::replace(&mut open.admission, new).map(Admission::withdraw);
        Ok(())
    }
}

/// Our rules for the host's chain; firewalld writes its own.
fn rules_for(opening: &Opening, judged: (Backend, Option<Found>)) -> Vec<Change> {
    match judged {
        (Backend::Firewalld, _) | (_, None) => Vec::new(),
        (_, Some(found)) => host::head_rules(opening, found.path),
    }
}

/// Whether some process holds a socket with our tag. When the kernel does not say: yes.
fn is_any_held(marks: Marks) -> bool {
    sockdiag::tagged(marks).map_or(true, |found| found.iter().any(|socket| socket.held))
}

impl Firewall for Nftables {
    fn backend(&mut self) -> Result<Backend, FirewallError> {
        let (_, survey) = self.survey()?;
        survey.judged.map(|(backend, _)| backend).map_err(FirewallError::Unsupported)
    }

    fn other_drops(&mut self) -> Result<Vec<String>, FirewallError> {
        let (_, survey) = self.survey()?;
        let chains = self.ruleset.list(nft::GET_CHAIN, Family::ALL, &[], Chain::read);
        let chains = chains.map_err(kernel("list the firewall"))?;
        let opened = survey.judged.ok().and_then(|(_, found)| found);
        Ok(host::other_drops(&chains, opened.map(|found| found.path)))
    }

    fn open(&mut self, opening: &Opening) -> Result<Backend, FirewallError> {
        let step = "open the ports";
        if self.open.contains_key(&opening.mark) {
            return Err(kernel(step)(io::ErrorKind::AlreadyExists.into()));
        }
        let own = self.own_rules()?;
        let opened = self.transact(step, |this, survey| {
            let judged = survey.judged.clone().map_err(FirewallError::Unsupported)?;
            let mut changes = this.leftovers(survey, &own);
            if survey.owner == Some(None) {
                changes.push(nft::delete_table(table::FAMILY, table::NAME));
            }
            if survey.owner.flatten().is_none() {
                changes.extend(table::skeleton(this.marks));
            }
            changes.extend(table::lease(opening));
            changes.extend(rules_for(opening, judged));
            Ok((changes, judged))
        });
        let (backend, found) = opened.map_err(name_modules)?;
        let heard = Instant::now();
        self.open.insert(opening.mark, Open { found, admission: None, heard });
        if let Err(error) = self.ask_firewalld(backend, opening) {
            self.close(opening)?;
            return Err(error);
        }
        Ok(backend)
    }

    fn close(&mut self, opening: &Opening) -> Result<(), FirewallError> {
        let Some(open) = self.open.remove(&opening.mark) else {
            return Ok(());
        };
        // In our own table and on no condition: whatever hinders the rest, the port is closed.
        let closed = self.ruleset.commit(&table::kill(opening), None);
        if let Some(Err(error)) = open.admission.map(Admission::withdraw) {
            log::firewall("close", &error);
        }
        let swept = self.sweep().map(drop);
        swept.or_else(|error| closed.map_err(kernel("close the ports")).and(Err(error)))
    }

    fn standing(&mut self, opening: &Opening) -> Result<Standing, FirewallError> {
        let Some(open) = self.open.get_mut(&opening.mark) else {
            return Ok(Standing::Revoked);
        };
        // Lets broadcasts in for some time more, where a raw socket hears them.
        if opening.dhcp == Dhcp::Raw && open.heard.elapsed() >= limits::HEARING_RENEWAL {
            let renewed = self.ruleset.commit(&table::hear(opening), None);
            renewed.map_err(kernel("keep UDP 67 open"))?;
            open.heard = Instant::now();
        }
        let before = open.found;
        let (_, survey) = self.survey()?;
        let Ok((_, now)) = survey.judged else {
            return Ok(Standing::ChainGone);
        };
        if !Found::is_same(now, before) {
            return Ok(Standing::ChainGone);
        }
        let Some((open, before)) = self.open.get_mut(&opening.mark).zip(before) else {
            // There was no firewall, and still is none.
            return Ok(Standing::Whole);
        };
        if let Some(admission) = &open.admission {
            return Ok(match admission.is_due() {
                false => Standing::Whole,
                true if admission.stands()? => Standing::ChainGone,
                true => Standing::Revoked,
            });
        }
        let rules = survey.rules(before.path);
        let ours = host::count(rules, opening.mark);
        if ours >= opening.ports().count() {
            open.found = now;
            return Ok(Standing::Whole);
        }
        // Emptied, and perhaps filled again, without having been made anew: as a reload (ufw).
        let refilled = ours == 0 && hosts_own(rules).all(|rule| rule.handle > before.newest);
        Ok(if refilled { Standing::ChainGone } else { Standing::Revoked })
    }

    fn restore(&mut self, opening: &Opening) -> Result<bool, FirewallError> {
        let Some(before) = self.open.get(&opening.mark).map(|open| open.found) else {
            return Ok(false);
        };
        let slot = opening.mark.slot.get();
        let restored = self.transact("open the ports again", |_, survey| {
            let Ok(judged) = survey.judged else {
                return Ok((Vec::new(), None));
            };
            let Some(Found { path, .. }) = judged.1 else {
                return Ok((Vec::new(), before.is_none().then_some(judged)));
            };
            // Emptied: perhaps it is being filled again. One that was made anew may be empty.
            if hosts_own(survey.rules(path)).next().is_none() && Found::is_same(judged.1, before) {
                return Ok((Vec::new(), None));
            }
            // A copy of ours, saved and restored by somebody, would be counted as ours.
            let mut changes = host::delete_rules(survey.rules(path), |one| one == slot);
            changes.extend(rules_for(opening, judged));
            Ok((changes, Some(judged)))
        })?;
        let Some((backend, found)) = restored else {
            return Ok(false);
        };
        self.ask_firewalld(backend, opening)?;
        if let Some(open) = self.open.get_mut(&opening.mark) {
            open.found = found;
        }
        Ok(true)
    }

    fn sweep(&mut self) -> Result<usize, FirewallError> {
        let own = self.own_rules()?;
        // Asked once and first: only the helper makes such sockets. Without a table of ours there
        // is nothing to ask for.
        let needed = !self.open.is_empty() || (!own.is_empty() && is_any_held(self.marks));
        self.transact("remove rules that are no longer needed", |this, survey| {
            let mut changes = this.leftovers(survey, &own);
            let rules = changes.len();
            if survey.owner.is_some_and(|owner| owner.is_none() || !needed) {
                changes.push(nft::delete_table(table::FAMILY, table::NAME));
            }
            Ok((changes, rules))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a network namespace of this thread alone: what the kernel says to a rule whose module is
    /// not there, told of one that no module has.
    #[test]
    fn a_module_that_the_kernel_lacks_is_named() {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: a_module_that_the_kernel_lacks_is_named: needs root: {error}");
            return;
        }
        let mut ruleset = Ruleset::open().unwrap();
        let (family, table) = (Family::INET, "t");
        let chain = Path { family, table, name: "c" };
        let mut rule = |phrases| {
            let changes = [
                nft::add_owned_table(family, table),
                nft::add_chain(chain, None),
                nft::add_rule(chain, nft::AT_END, None, phrases),
            ];
            ruleset.commit(&changes, None).map_err(kernel("open the ports"))
        };
        let refused = rule("no such phrase").unwrap_err();
        let FirewallError::Unsupported(text) = name_modules(refused) else {
            panic!("the modules are not named");
        };
        for part in ["open the ports", "nft_socket", "nft_fib_inet", "modules-load.d"] {
            assert!(text.contains(part), "{text}");
        }
        rule("notrack").unwrap();
        // Any other refusal keeps its own words.
        let refused = rule("notrack").unwrap_err();
        assert!(matches!(name_modules(refused), FirewallError::Kernel { .. }));
    }
}
