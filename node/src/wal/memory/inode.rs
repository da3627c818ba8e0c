//! One file of the disk in memory: its bytes, and of each page and the length what they were since the
//! last sync. Never knows a name. Used by the disk in memory alone.

use std::collections::BTreeMap;

/// Small, so that small tests tear in many places.
pub const PAGE_BYTES: usize = 64;
/// Versions of a page or a length that are remembered besides the present one: what is durable, and the
/// last one before the present.
const EARLIER_MAX: usize = 2;

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    now: Vec<u8>,
    /// Of pages written since the last sync: what they held before, what is durable first.
    pages: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Lengths since the last sync, the durable one first; empty: it is the present one.
    lens: Vec<usize>,
    /// Of pages whose sync has failed: what the disk holds. They are clean to the kernel, so that no later
    /// sync writes them.
    failed: BTreeMap<usize, Vec<u8>>,
}

fn remember<T: PartialEq>(earlier: &mut Vec<T>, held: T) {
    if earlier.last() != Some(&held) {
        earlier.truncate(EARLIER_MAX - 1);
        earlier.push(held);
    }
}

impl Inode {
    /// All of it durable.
    pub(super) fn settled(bytes: Vec<u8>) -> Self {
        Self { now: bytes, ..Self::default() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.now
    }

    pub(super) fn write(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        self.remember_pages(start, end);
        if end > self.now.len() {
            remember(&mut self.lens, self.now.len());
            self.now.resize(end, 0);
        }
        self.now[start..end].copy_from_slice(bytes);
    }

    pub(super) fn set_len(&mut self, len: usize) {
        let before = self.now.len();
        if len != before {
            self.remember_pages(len, before);
            remember(&mut self.lens, before);
            self.now.resize(len, 0);
        }
    }

    fn remember_pages(&mut self, start: usize, end: usize) {
        for page in start / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            let held = self.failed.remove(&page).unwrap_or_else(|| self.page(page).to_vec());
            remember(self.pages.entry(page).or_default(), held);
        }
    }

    fn page(&self, page: usize) -> &[u8] {
        let rest = self.now.get(page * PAGE_BYTES..).unwrap_or(&[]);
        &rest[..rest.len().min(PAGE_BYTES)]
    }

    pub(super) fn sync(&mut self) {
        self.pages.clear();
        self.lens.clear();
    }

    /// What the sync was to make durable never will be, unless it is written again.
    pub(super) fn fail_sync(&mut self) {
        for (page, earlier) in std::mem::take(&mut self.pages) {
            let durable = earlier.into_iter().next().expect("a page is listed with what it held");
            self.failed.entry(page).or_insert(durable);
        }
    }

    /// The bytes that a loss of power leaves. `pick` is asked for each length and page that may be found in
    /// several versions: 0 takes what is durable, the highest what is newest.
    pub(super) fn surviving(&self, pick: &mut dyn FnMut(usize) -> usize) -> Vec<u8> {
        let mut lens = self.lens.clone();
        lens.push(self.now.len());
        lens.dedup();
        let mut found = vec![0; choose(&lens, pick)];
        for (number, page) in found.chunks_mut(PAGE_BYTES).enumerate() {
            let kept = choose(&self.versions(number, page.len()), pick);
            page[..kept.len()].copy_from_slice(kept);
        }
        found
    }

    /// What the first bytes of a page may be, the oldest first.
    fn versions(&self, page: usize, bytes: usize) -> Vec<&[u8]> {
        let newest = self.failed.get(&page).map_or_else(|| self.page(page), Vec::as_slice);
        let earlier = self.pages.get(&page).into_iter().flatten().map(Vec::as_slice);
        let mut versions: Vec<&[u8]> = earlier.chain([newest]).map(|held| &held[..held.len().min(bytes)]).collect();
        versions.dedup();
        versions
    }
}

fn choose<T: Copy>(versions: &[T], pick: &mut dyn FnMut(usize) -> usize) -> T {
    if versions.len() == 1 { versions[0] } else { versions[pick(versions.len())] }
}
