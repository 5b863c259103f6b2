//! `boot`, `api` and `quick`: from their arguments to what is served.
//!
//! Guarantees: what was named has been opened and checked, or the run ends here.

use std::sync::Arc;

use nix::unistd::geteuid;
use tokio::sync::mpsc;

use super::{Beside, CHANGES, Content, serve};
use crate::{
    cli::{self, Boot, Quick, Serving},
    commands::runtime,
    exit::{Code, Failure},
    report::Report,
    sign::Signer,
    source::{
        self, Order,
        api::Api,
        cache::{self, Cache},
        fresh::Fresh,
        quick::Dish,
    },
};

/// `boot`: returns when the user ends it.
///
/// # Errors
/// Everything else, each with its exit code.
pub fn boot(boot: &Boot, report: &mut Report) -> Result<(), Failure> {
    begin(&boot.serving, boot.refusal(), report)?;
    let runtime = runtime()?;
    let signer = signer(&boot.serving, report)?;
    let (direct, cache) = (boot.serving.direct, cache(&boot.serving));
    if let Some(script) = runtime.block_on(source::quick::netboot_xyz(&boot.kernel))? {
        let alone = boot.initrds.is_empty()
            && boot.cmdline.is_none()
            && boot.menu.is_empty()
            && boot.mirror.is_empty();
        if !alone {
            let text = "netboot.xyz chooses kernel, command line and mirror itself: name it alone";
            return Err(Failure::new(Code::Usage, text));
        }
        let generation = runtime.block_on(async {
            let generation = source::open_script(&script, direct, &cache).await?;
            source::complete(generation, boot.serving.stub.as_deref(), signer.as_ref()).await
        })?;
        return serve(
            &boot.serving,
            Content::Same(Arc::new(generation)),
            Beside::default(),
            runtime,
            report,
        );
    }
    let order = Order {
        kernel: boot.kernel.clone(),
        initrds: boot.initrds.clone(),
        cmdline: boot.cmdline.clone(),
        message: boot.bootmsg.clone(),
        direct,
        menu: boot.menu.clone(),
        mirrors: boot.mirror.clone(),
        cache,
    };
    let (sender, changes) = mpsc::channel(CHANGES);
    let opening = Fresh::open(order, boot.serving.stub.clone(), signer, sender);
    let (fresh, generation) = runtime.block_on(opening)?;
    let content = Content::Fresh(Arc::new(fresh), generation);
    let beside = Beside { changes: Some(changes), ..Beside::default() };
    serve(&boot.serving, content, beside, runtime, report)
}

/// `quick`: as [`boot`], from a recipe's addresses.
///
/// # Errors
/// As [`boot`].
pub fn quick(quick: &Quick, report: &mut Report) -> Result<(), Failure> {
    begin(&quick.serving, quick.refusal(), report)?;
    let runtime = runtime()?;
    let signer = signer(&quick.serving, report)?;
    let (direct, cache) = (quick.serving.direct, cache(&quick.serving));
    let opening = async {
        let dish = source::quick::prepare(source::quick::Choice {
            recipe: &quick.recipe,
            version: quick.version.as_deref(),
            arch: quick.arch.as_deref(),
            mirror: quick.mirror.as_deref(),
            cmdline: quick.cmdline.as_deref(),
        });
        let generation = match dish.await? {
            Dish::Linux { kernel, initrds, cmdline } => {
                let (cmdline, message) = (Some(cmdline), quick.bootmsg.clone());
                source::open(&Order {
                    kernel,
                    initrds,
                    cmdline,
                    message,
                    direct,
                    cache,
                    ..Order::default()
                })
                .await?
            }
            Dish::Script(script) => source::open_script(&script, direct, &cache).await?,
        };
        source::complete(generation, quick.serving.stub.as_deref(), signer.as_ref()).await
    };
    let generation = runtime.block_on(opening)?;
    serve(&quick.serving, Content::Same(Arc::new(generation)), Beside::default(), runtime, report)
}

/// `api`: as [`boot`], with what a web service says for each machine.
///
/// # Errors
/// As [`boot`].
pub fn api(api: &cli::Api, report: &mut Report) -> Result<(), Failure> {
    begin(&api.serving, None, report)?;
    let (stub, signer) = (api.serving.stub.clone(), signer(&api.serving, report)?);
    let source = Api::new(&api.url, api.api_request_timeout, stub, signer)?;
    let source = source.direct(api.serving.direct).cache(cache(&api.serving));
    let content = Content::Api(Arc::new(source), &api.url);
    serve(&api.serving, content, Beside::default(), runtime()?, report)
}

/// What is wrong with the arguments themselves, and what has no effect.
pub(super) fn begin(
    serving: &Serving,
    refusal: Option<&'static str>,
    report: &mut Report,
) -> Result<(), Failure> {
    if let Some(refusal) = refusal {
        return Err(Failure::new(Code::Usage, refusal));
    }
    for note in serving.notes() {
        report.note(note);
    }
    Ok(())
}

/// Copies of what lies on other web servers, as the user wants them.
pub(super) fn cache(serving: &Serving) -> Cache {
    let limit = serving.cache_size;
    Cache::new(match cache::place(|name| std::env::var_os(name)) {
        Some(folder) => cache::Settings { folder, keep: !serving.no_cache, limit },
        // Without a home nothing is kept, and what is shared has to be somewhere.
        None => {
            let folder = std::env::temp_dir().join(format!("portcullis-{}", geteuid()));
            cache::Settings { folder, keep: false, limit }
        }
    })
}

/// Who signs, if the user named a key.
pub(super) fn signer(
    serving: &Serving,
    report: &mut Report,
) -> Result<Option<Arc<Signer>>, Failure> {
    let (Some(key), Some(certificate)) = (&serving.sign_key, &serving.sign_cert) else {
        return Ok(None);
    };
    let (signer, warning) = Signer::open(key, certificate)?;
    if let Some(warning) = warning {
        report.note(&warning);
    }
    Ok(Some(Arc::new(signer)))
}
