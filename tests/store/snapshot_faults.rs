//! The folder of snapshots under every failure: of the disk, of the process, of those who put
//! other files there. Whatever happens, a start finds the last snapshot that was whole.
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use skep::access::passkey::PasskeyTable;
use skep::snapshot::{
    CURRENT, Disk, FoundSnapshots, OsDisk, PREVIOUS, SaveStep, SnapshotFolder, TEMPORARY, VERSION,
};
use skep::store::{Role, Store};
use skep::time::Now;

use crate::snapshot_model::{START, TRACKER, empty_store, join, snapshot_with, v4};
use crate::support::child_test;

/// A store whose snapshot says which one it is: `number` downloads, and twice as many peers.
fn marked(number: u32) -> Store {
    let store = empty_store(1);
    store.restore_completed(number.into());
    for peer in 0..number * 2 {
        join(&store, START, peer / 3, v4(peer), Role::Leecher);
    }
    store
}

fn save<D: Disk>(folder: &SnapshotFolder<D>, number: u32) -> Result<(), skep::snapshot::SaveError> {
    folder
        .save((&marked(number), &PasskeyTable::default()), START, START.seconds(), &mut || Ok(()))
        .map(|_| ())
}

/// Which snapshot a start would restore, if any: its mark, once its contents agree with it.
fn found<D: Disk>(found: &FoundSnapshots<D>) -> Option<u64> {
    let (snapshot, _) = found.snapshot.as_ref()?;
    let contents = snapshot.contents();
    assert_eq!(contents.peers, contents.completed * 2);
    Some(contents.completed)
}

fn names(path: &Path) -> Vec<String> {
    let all = fs::read_dir(path).unwrap().map(|it| it.unwrap().file_name());
    let mut all: Vec<_> = all.map(|it| it.into_string().unwrap()).collect();
    all.sort();
    all
}

// ---------------------------------------------------------------------------------------------
// The disk

/// A disk that fails at one of its operations, and says how many it was asked for.
#[derive(Clone, Default)]
struct Faulty {
    asked: Rc<Cell<u32>>,
    fails_at: Rc<Cell<Option<u32>>>,
    /// From then on, or just once.
    for_good: Rc<Cell<bool>>,
    error: Rc<Cell<i32>>,
    /// The write that fails takes half of what it is given before.
    halves: Rc<Cell<bool>>,
}

impl Faulty {
    fn failing_at(operation: u32, error: i32, for_good: bool, halves: bool) -> Self {
        let faulty = Self::default();
        faulty.fails_at.set(Some(operation));
        faulty.error.set(error);
        faulty.for_good.set(for_good);
        faulty.halves.set(halves);
        faulty
    }

    fn ask(&self) -> io::Result<()> {
        let operation = self.asked.replace(self.asked.get() + 1);
        let fails = self
            .fails_at
            .get()
            .is_some_and(|at| operation == at || self.for_good.get() && operation > at);
        if fails { Err(io::Error::from_raw_os_error(self.error.get())) } else { Ok(()) }
    }
}

struct FaultyFile {
    file: File,
    disk: Faulty,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.disk.ask() {
            if self.disk.halves.get() {
                self.file.write_all(&bytes[..bytes.len() / 2])?;
            }
            return Err(error);
        }
        // Short, as a disk that is nearly full has it.
        let part = if self.disk.halves.get() { bytes.len().div_ceil(2) } else { bytes.len() };
        self.file.write(&bytes[..part])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.ask()
    }
}

impl Read for FaultyFile {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.disk.ask()?;
        self.file.read(bytes)
    }
}

impl Seek for FaultyFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Disk for Faulty {
    type Input = FaultyFile;
    type Output = FaultyFile;

    fn open(&self, path: &Path) -> io::Result<FaultyFile> {
        self.ask()?;
        Ok(FaultyFile { file: File::open(path)?, disk: self.clone() })
    }

    fn create(&self, path: &Path) -> io::Result<FaultyFile> {
        self.ask()?;
        Ok(FaultyFile { file: OsDisk.create(path)?, disk: self.clone() })
    }

    fn sync(&self, file: &FaultyFile) -> io::Result<()> {
        self.ask()?;
        OsDisk.sync(&file.file)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        OsDisk.sync_folder(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask()?;
        OsDisk.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask()?;
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        OsDisk.remove(path)
    }
}

const ERRORS: [i32; 4] = [libc::ENOSPC, libc::EIO, libc::EROFS, libc::EACCES];

#[test]
fn whatever_fails_while_saving_the_last_one_stays_and_the_next_attempt_succeeds() {
    let mut steps = std::collections::BTreeSet::new();
    for (error, for_good, halves) in
        ERRORS.iter().flat_map(|it| [(*it, false, false), (*it, true, false), (*it, true, true)])
    {
        for operation in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let at = |disk| SnapshotFolder::new(disk, directory.path().to_owned(), TRACKER);
            let whole = SnapshotFolder::new(OsDisk, directory.path().to_owned(), TRACKER);
            [1, 2].into_iter().for_each(|number| save(&whole, number).unwrap());
            let disk = Faulty::failing_at(operation, error, for_good, halves);
            let saved = save(&at(disk.clone()), 3);
            let Err(failed) = saved else {
                // Either nothing was asked that fails, or nothing that matters: a name that was
                // not there could not be removed.
                assert_eq!(found(&whole.find(START)), Some(3));
                if disk.asked.get() <= operation {
                    break;
                }
                continue;
            };
            steps.insert(failed.step.label());
            assert_eq!(failed.error.raw_os_error(), Some(error));
            assert!(
                failed.to_string().contains("swarms.snapshot") || failed.step == SaveStep::Sync
            );
            // Both what was there and the new one are whole snapshots, if the failure came late.
            let survives = found(&whole.find(START)).unwrap();
            assert_eq!(survives, if failed.is_in_place { 3 } else { 2 });
            let text = failed.to_string();
            assert_eq!(text.contains("in its place, but may not survive"), failed.is_in_place);
            assert!(!failed.is_in_place || failed.step == SaveStep::Sync, "{text}");
            if !for_good {
                assert!(directory.path().join(CURRENT).exists(), "it has its name: {text}");
            }
            save(&whole, 4).unwrap();
            assert_eq!(found(&whole.find(START)), Some(4));
            let names = names(directory.path());
            assert_eq!(names, [CURRENT, PREVIOUS], "at {operation}: nothing unfinished stays");
            fs::remove_file(directory.path().join(CURRENT)).unwrap();
            assert!(found(&whole.find(START)).unwrap() >= 2, "the one before is whole as well");
        }
    }
    let all: Vec<_> = steps.into_iter().collect();
    assert_eq!(all, ["commit", "create", "sync", "write"]);
}

#[test]
fn a_file_that_cannot_be_read_is_set_aside_and_the_previous_one_taken() {
    let mut outcomes = std::collections::BTreeSet::new();
    for operation in 1.. {
        let directory = tempfile::tempdir().unwrap();
        let whole = SnapshotFolder::new(OsDisk, directory.path().to_owned(), TRACKER);
        [1, 2].into_iter().for_each(|number| save(&whole, number).unwrap());
        let disk = Faulty::failing_at(operation, libc::EIO, false, false);
        let folder = SnapshotFolder::new(disk.clone(), directory.path().to_owned(), TRACKER);
        let snapshots = folder.find(START);
        if disk.asked.get() <= operation {
            assert_eq!((found(&snapshots), snapshots.aside.len()), (Some(2), 0));
            break;
        }
        outcomes.insert((found(&snapshots), snapshots.aside.len()));
        for aside in &snapshots.aside {
            assert_eq!(aside.kind, "unreadable");
            assert!(aside.name.as_ref().unwrap().exists(), "it is kept");
        }
    }
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), [(Some(1), 1)]);
}

// ---------------------------------------------------------------------------------------------
// Files of others

#[test]
fn what_is_no_snapshot_of_this_tracker_is_named_and_kept() {
    let store = marked(7);
    let version_2 = snapshot_with(&store, START, TRACKER, VERSION + 1);
    let foreign = snapshot_with(&store, START, *b"another tracker!", VERSION);
    let mut damaged = snapshot_with(&store, START, TRACKER, VERSION);
    damaged[100] ^= 1;
    for (bytes, kind, reason) in [
        (&version_2, format!("unknown-version-{}", VERSION + 1), "newer than this skep's"),
        (&foreign, "foreign".into(), "another tracker"),
        (&damaged, "damaged".into(), "checksum"),
        (&Vec::new(), "damaged".into(), "too short"),
        (&b"something else".repeat(20), "damaged".into(), "not a snapshot: wrong first bytes"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let folder = SnapshotFolder::new(OsDisk, directory.path().to_owned(), TRACKER);
        [1, 2].into_iter().for_each(|number| save(&folder, number).unwrap());
        fs::write(directory.path().join(CURRENT), bytes).unwrap();
        fs::write(directory.path().join(TEMPORARY), "half").unwrap();
        let now = START.plus_s(77);
        let snapshots = folder.find(now);
        assert_eq!((found(&snapshots), snapshots.aside.len()), (Some(1), 1), "the previous one");
        let aside = &snapshots.aside[0];
        assert!(aside.reason.contains(reason), "{}", aside.reason);
        let name = format!("{CURRENT}.{kind}-{}", now.seconds());
        let mut expected = [PREVIOUS, name.as_str()];
        expected.sort_unstable();
        assert_eq!(names(directory.path()), expected, "{kind}");
        assert_eq!(fs::read(directory.path().join(&name)).unwrap(), *bytes, "as it was");

        // The previous one as well, in the same second: nothing is overwritten.
        fs::write(directory.path().join(PREVIOUS), bytes).unwrap();
        let found_snapshots = folder.find(now);
        assert_eq!((found(&found_snapshots), found_snapshots.aside.len()), (None, 1));
        assert_eq!(names(directory.path()), [name.clone(), format!("{name}-1")]);
        assert!(folder.find(now).aside.is_empty(), "an empty start, without a word");
    }
}

#[test]
fn a_folder_where_a_snapshot_should_be_is_set_aside_too() {
    let directory = tempfile::tempdir().unwrap();
    let folder = SnapshotFolder::new(OsDisk, directory.path().to_owned(), TRACKER);
    fs::create_dir(directory.path().join(CURRENT)).unwrap();
    let snapshots = folder.find(START);
    assert!(
        snapshots.snapshot.is_none() && snapshots.aside[0].name.is_ok(),
        "{:?}",
        snapshots.aside
    );
    save(&folder, 1).unwrap();
    assert_eq!(found(&folder.find(START)), Some(1));
}

// ---------------------------------------------------------------------------------------------
// The process

/// The folder in which a child of this test saves one snapshot after the other, until killed.
const CHILD: &str = "SNAPSHOT_TEST_FOLDER";

/// How many processes are killed, unless the variable KILLS says otherwise. Each has saved some
/// snapshots and is in the middle of another.
const KILLS: u32 = 200;

#[test]
fn no_kill_leaves_a_snapshot_that_loads_wrongly() {
    if let Some(path) = std::env::var_os(CHILD) {
        save_until_killed(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let folder = SnapshotFolder::new(OsDisk, directory.path().to_owned(), TRACKER);
    let mut random = Rng::with_seed(1);
    let (mut latest, mut unfinished, mut commits) = (0, 0, 0);
    let kills = std::env::var("KILLS").map_or(KILLS, |it| it.parse().unwrap());
    for kill in 0..kills {
        let (committed, saved_us) = kill_one(directory.path(), &mut random);
        assert!(committed > latest, "{committed} after {latest}");
        let names = names(directory.path());
        unfinished += u32::from(names.iter().any(|it| it == TEMPORARY));
        commits += u32::from(!names.iter().any(|it| it == CURRENT));
        let snapshots = folder.find(START);
        assert!(snapshots.aside.is_empty(), "kill {kill}: {:?}", snapshots.aside);
        let number = found(&snapshots).unwrap();
        // The one after the last that was told may have been committed, too.
        assert!((committed..=committed + 1).contains(&number), "{number}, {committed} was told");
        assert!(!directory.path().join(TEMPORARY).exists(), "kill {kill}, {saved_us} us");
        latest = number;
    }
    println!("{unfinished} of {kills} in the middle of a file, {commits} between two names");
    assert!(unfinished > kills / 5, "{unfinished}: the kills come at random");
}

/// Starts a child and kills it at some moment of its snapshots after the first; returns the last
/// that it said was saved, and how long one took.
fn kill_one(path: &Path, random: &mut Rng) -> (u64, u64) {
    let mut child = child_test(module_path!(), "no_kill_leaves_a_snapshot_that_loads_wrongly")
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut told = lines.filter_map(|text| {
        let (number, us) = text.split_once(" saved in ")?;
        let number = number.rsplit(' ').next()?;
        Some((number.parse::<u64>().ok()?, us.parse::<u64>().ok()?))
    });
    let (first, saved_us) = told.next().unwrap();
    // Any moment of the next two or so.
    std::thread::sleep(Duration::from_micros(random.u64(..saved_us * 2 + 1)));
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before it was killed is in the pipe still.
    (told.last().map_or(first, |it| it.0), saved_us)
}

/// Goes on from the snapshot that is there.
fn save_until_killed(path: &Path) -> ! {
    let folder = SnapshotFolder::new(OsDisk, path.to_owned(), TRACKER);
    let begun = found(&folder.find(START)).unwrap_or(1000);
    for number in begun + 1.. {
        let start = std::time::Instant::now();
        save(&folder, u32::try_from(number).unwrap()).unwrap();
        println!("{number} saved in {}", start.elapsed().as_micros());
        io::stdout().flush().unwrap();
    }
    unreachable!("it is killed before")
}

#[test]
fn moments_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let folder = SnapshotFolder::new(OsDisk, directory.path().to_owned(), TRACKER);
    let at = Now::from_s(1_900_000_000);
    folder.save((&marked(3), &PasskeyTable::default()), at, at.seconds(), &mut || Ok(())).unwrap();
    let snapshots = folder.find(at);
    let header = snapshots.snapshot.as_ref().unwrap().0.header();
    assert_eq!((header.at_s, header.build.as_str()), (at.seconds(), env!("CARGO_PKG_VERSION")));
    let path = directory.path().join(CURRENT);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600, "peers' addresses are nobody else's business");
    assert_eq!(
        OsDisk.create(&directory.path().join(CURRENT)).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
}
