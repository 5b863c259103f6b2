//! The pages' links to files.

use portcullis_lab::repository::{read, workspace};

/// Links in the repository's own pages lead to files that are there.
#[test]
fn links_lead_somewhere() {
    let mut seen = 0;
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "helper/README.md",
        "helper/JOURNAL.md",
        "docs/faults.md",
        "docs/soak.md",
    ] {
        let text = read(page);
        let folder = workspace().join(page).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(folder.join(target).exists(), "{page}: {target}");
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} links are not all");
}
