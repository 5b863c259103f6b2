//! `nixos`: from its arguments, by a first build in sight of the user, to what is served.
//!
//! Guarantees: what may have to be asked is asked before the build; nothing is open while it lasts.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{
    Beside, CHANGES, Content, Interrupts,
    arguments::{begin, cache, signer},
    serve,
};
use crate::{
    cli::Nixos,
    commands::{pick_interfaces, runtime},
    exit::{Code, Failure},
    nixos::{self, Build, Links, Recipe, Screen, State, Told, Watched, Workshop},
    report::Report,
    source::{Order, fresh::Fresh},
};

/// `nixos`: as [`boot`](super::boot), with what nix builds, now and anew on demand. With `--new` only
/// a flake is written.
///
/// # Errors
/// As [`boot`](super::boot), and [`Code::Nix`].
pub fn nixos(arguments: &Nixos, report: &mut Report) -> Result<(), Failure> {
    begin(&arguments.serving, arguments.refusal(), report)?;
    if let Some(folder) = &arguments.new {
        let told = nixos::new::write(folder, arguments)?;
        told.iter().for_each(|line| report.note(line));
        return Ok(());
    }
    // What may have to be asked comes before a build of minutes.
    let interfaces = pick_interfaces(&arguments.serving, report)?;
    let signer = signer(&arguments.serving, report)?;
    let mut recipe = Recipe::new(arguments);
    // Looked at before it is built, so that no change is missed.
    let folder = arguments.watch.then(|| recipe.folder().and_then(Watched::open)).transpose()?;
    let links = Arc::new(Links::new()?);
    let runtime = runtime()?;
    let mut interrupts = runtime.block_on(async { Interrupts::new() })?;
    let built = runtime.block_on(async {
        tokio::select! {
            biased;
            () = interrupts.next() => None,
            built = first_build(&mut recipe, &links, report) => Some(built),
        }
    });
    let Some(built) = built.transpose()? else {
        report.interrupted();
        report.note("Ended before it was built: nothing was opened.");
        return Ok(());
    };
    let (sender, changes) = mpsc::channel(CHANGES);
    let stub = arguments.serving.stub.clone();
    let (fresh, generation, workshop) = runtime.block_on(async {
        let order = Order { cache: cache(&arguments.serving), ..built.order.clone() };
        let (fresh, generation) = Fresh::open(order, stub, signer, sender).await?;
        let fresh = Arc::new(fresh);
        let workshop =
            Workshop::open(recipe, built, Arc::clone(&links), folder, Arc::clone(&fresh))?;
        Ok::<_, Failure>((fresh, generation, workshop))
    })?;
    interrupts.spare_hangups(workshop.takes_hangups());
    let beside = Beside {
        changes: Some(changes),
        interfaces,
        interrupts: Some(interrupts),
        workshop: Some(workshop),
        desktop: None,
    };
    serve(&arguments.serving, Content::Fresh(fresh, generation), beside, runtime, report)
}

/// Builds what is served first, in sight of the user.
async fn first_build(
    recipe: &mut Recipe,
    links: &Links,
    report: &mut Report,
) -> Result<Build, Failure> {
    let folder = links.build(0).map_err(|error| {
        Failure::new(Code::Internal, format!("no folder for the build can be made: {error}"))
    })?;
    let terminal = report.shares_terminal();
    let say = |report: &mut Report, state, text: &str| {
        report.build(&Told { state, text: text.to_owned() });
    };
    let mut tell = |line: &str| say(report, State::Output, line);
    recipe.choose(&mut Screen::new(terminal, &mut tell)).await?;
    say(report, State::Started, &format!("Building {} ...", recipe.name()));
    let mut tell = |line: &str| say(report, State::Output, line);
    let build = recipe.build(&folder, &mut Screen::new(terminal, &mut tell)).await?;
    let text = format!("Built {}: {}", recipe.name(), build.toplevel.display());
    say(report, State::Done, &text);
    Ok(build)
}
