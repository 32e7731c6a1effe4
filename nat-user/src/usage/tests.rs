use super::*;

const HOUR: Duration = Duration::from_hours(1);

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn payer() -> Payer {
    Payer { address: [203, 0, 113, 1].into(), account: "acme".parse().unwrap(), vm: None }
}

fn bytes(in_bytes: u64) -> Carried {
    Carried { in_bytes, in_packets: in_bytes.div_ceil(100), ..Carried::default() }
}

/// A ledger that accounts at once for what it is told.
struct Book {
    ledger: Ledger,
    records: Vec<(Seconds, Seconds, u64)>,
}

impl Book {
    fn new(started: u64) -> Self {
        Self { ledger: Ledger::new(HOUR, at(started)), records: Vec::new() }
    }

    fn note(&mut self, fill: impl FnOnce(&Ledger, &mut Entries)) -> Entries {
        let mut entries = Entries::default();
        fill(&self.ledger, &mut entries);
        let records = entries.records.iter();
        self.records.extend(records.map(|record| (record.begin, record.end, record.carried.in_bytes)));
        self.ledger.apply(entries.clone());
        entries
    }

    fn read(&mut self, now: u64, reading: u64) -> Entries {
        let entries = self
            .note(|ledger, entries| ledger.account(entries, 0, bytes(reading), at(now), || Some(payer())));
        self.ledger.looked(at(now));
        entries
    }

    fn end(&mut self, now: u64, reading: u64, is_over: bool) {
        self.note(|ledger, entries| ledger.end(entries, 0, bytes(reading), at(now), &payer(), is_over));
    }
}

#[test]
fn a_record_an_interval_from_the_attach_on() {
    let mut book = Book::new(0);
    book.note(|ledger, entries| ledger.begin(entries, 0, at(1800)));
    book.read(1900, 100);
    book.read(3599, 150);
    book.read(3601, 160);
    // Nothing is carried, so there is no record.
    book.read(7201, 160);
    book.read(10_890, 160);
    book.read(10_900, 200);
    book.read(14_400, 200);
    assert_eq!(book.records, [(1800, 3600, 160), (10_800, 14_400, 40)]);
}

#[test]
fn what_is_looked_at_late_says_so() {
    let mut book = Book::new(0);
    book.read(100, 100);
    // The daemon was away.
    book.read(9000, 500);
    book.read(9010, 600);
    book.read(10_800, 600);
    assert_eq!(book.records, [(0, 9000, 500), (9000, 10_800, 100)]);
}

#[test]
fn a_move_splits_at_once_and_the_next_begins_from_zero() {
    let mut book = Book::new(0);
    book.read(100, 100);
    book.end(200, 130, true);
    assert_eq!(book.ledger.reading(0), bytes(0));
    book.note(|ledger, entries| ledger.begin(entries, 0, at(200)));
    book.read(210, 7);
    book.end(220, 7, true);
    assert_eq!(book.records, [(0, 200, 130), (200, 220, 7)]);
}

#[test]
fn another_name_of_the_vm_splits_and_the_meter_goes_on() {
    let mut book = Book::new(0);
    book.read(100, 100);
    book.end(200, 130, false);
    book.read(210, 150);
    book.read(3600, 150);
    assert_eq!(book.records, [(0, 200, 130), (200, 3600, 20)]);
}

#[test]
fn what_was_never_seen_before_its_end_is_accounted_for() {
    let mut book = Book::new(0);
    book.note(|ledger, entries| ledger.begin(entries, 0, at(50)));
    book.end(55, 42, true);
    assert_eq!(book.records, [(50, 55, 42)]);
}

#[test]
fn a_meter_that_somebody_has_set_to_zero_costs_nothing_that_was_seen() {
    let mut book = Book::new(0);
    book.read(100, 100);
    book.read(110, 30);
    book.read(3600, 40);
    assert_eq!(book.records, [(0, 110, 100), (110, 3600, 40)]);
}

#[test]
fn what_came_just_before_an_interval_ended_is_in_it() {
    let mut book = Book::new(0);
    book.read(3595, 0);
    book.read(3603, 50);
    book.read(3610, 60);
    book.end(3620, 60, true);
    assert_eq!(book.records, [(0, 3600, 50), (3600, 3620, 10)]);
}

#[test]
fn a_meter_that_was_set_to_zero_before_its_end_costs_nothing_that_was_seen() {
    let mut book = Book::new(0);
    book.read(100, 100);
    book.end(110, 30, true);
    assert_eq!(book.records.iter().map(|record| record.2).sum::<u64>(), 130);
    assert_eq!(book.ledger.accounts().values().map(|carried| carried.in_bytes).sum::<u64>(), 130);
}

#[test]
fn when_the_meters_are_gone_what_was_noted_counts() {
    let mut book = Book::new(0);
    book.read(100, 100);
    let open = book.read(110, 120);
    assert!(open.open.is_empty() && open.readings[&0] == bytes(120));
    let begun = Open { begin: 0, base: bytes(0) };
    book.note(|ledger, entries| ledger.end_all(entries, 110, [(0, begun, payer())]));
    assert_eq!(book.records, [(0, 110, 120)]);
    book.read(120, 5);
    book.end(130, 5, true);
    assert_eq!(book.records[1], (0, 130, 5));
}

#[test]
fn nothing_new_is_nothing_to_write() {
    let mut book = Book::new(0);
    assert!(!book.read(100, 100).is_empty());
    assert!(book.read(110, 100).is_empty());
    let mut entries = Entries::default();
    book.ledger.begin(&mut entries, 5, at(100));
    assert!(entries.is_empty());
}

#[test]
fn what_is_under_way_is_known_without_a_lag() {
    let mut book = Book::new(0);
    let under_way = |book: &Book, reading| book.ledger.under_way(0, bytes(reading), at(200), payer());
    assert_eq!(under_way(&book, 0), None);
    assert_eq!(
        under_way(&book, 5).map(|record| (record.begin, record.end, record.carried)),
        Some((0, 200, bytes(5)))
    );
    book.read(100, 100);
    assert_eq!(under_way(&book, 105).map(|record| record.carried), Some(bytes(105)));
}

mod property {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever happens when, every byte is in one record, and records of one binding do not overlap.
        #[test]
        fn every_byte_is_in_one_record(
            steps in proptest::collection::vec((0_u64..5000, 0_u64..1000, 0_u8..12), 1..60)
        ) {
            let mut book = Book::new(0);
            let (mut now, mut reading, mut carried) = (0, 0, 0);
            for (pause, more, what) in steps {
                (now, reading, carried) = (now + pause, reading + more, carried + more);
                match what {
                    0 => {
                        book.end(now, reading, true);
                        book.note(|ledger, entries| ledger.begin(entries, 0, at(now)));
                        reading = 0;
                    }
                    1 => book.end(now, reading, false),
                    _ => drop(book.read(now, reading)),
                }
            }
            let under_way = book.ledger.under_way(0, bytes(reading), at(now), payer());
            let under_way = under_way.map_or(0, |record| record.carried.in_bytes);
            prop_assert_eq!(book.records.iter().map(|record| record.2).sum::<u64>() + under_way, carried);
            for (begin, end, _) in &book.records {
                prop_assert!(begin <= end);
            }
            for pair in book.records.windows(2) {
                prop_assert!(pair[0].1 <= pair[1].0, "{pair:?}");
            }
        }
    }
}
