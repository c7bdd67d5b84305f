// The ledger against an auditor that shares no code with it. A world of streams is made at random:
// buckets whose outboxes grow, are shipped in pieces, late, twice, in the wrong order and by two
// shippers; whose operations are repeated at new positions; which are rewound and written again,
// and healed with part of what was in them. The auditor believes the answers and nothing else: an
// acknowledged position or a presented entry is billed, once, and all else is not.

import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

private struct Admitted: Hashable {
  var op: Int
  var bucket: Int
  var account: String
  var amount: Int64
}

/// What one bucket's Redis holds, and what was ever held by anyone.
private struct Stream {
  var epoch: Int64 = 1
  var entries: [Admitted] = []
}

private struct Auditor {
  /// Operations that the books must hold, each once.
  var billed: [Int: Admitted] = [:]

  mutating func acknowledged(_ stream: Stream, through cursor: Int64) {
    for one in stream.entries.prefix(Int(cursor)) { billed[one.op] = one }
  }

  func total(of account: String) -> Int64 {
    billed.values.reduce(0) { $0 + ($1.account == account ? $1.amount : 0) }
  }
}

@Suite(.blocking) struct AuditorTests {
  static let accounts = (0..<12).map { "acct\($0)" }

  @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
  func booksAreWhatWasAcknowledged(seed: UInt64) throws {
    print("auditor seed \(seed)")
    var random = Seeded(seed)
    let books = try Books(buckets: 3)
    var streams = [Stream](repeating: Stream(), count: 3)
    for bucket in 0..<3 { try books.open(bucket) }
    var auditor = Auditor()
    var nextOp = 1
    var everAdmitted: [[Admitted]] = [[], [], []]
    var lost: Set<Int> = []
    // Batches cut earlier and still on the way, with the stream they were cut from.
    var onTheWay: [(bucket: Int, epoch: Int64, first: Int, entries: [Admitted])] = []
    var answers: [String: Int] = [:]

    func entries(_ list: [Admitted], first: Int) throws -> [OutboxEntry] {
      try list.enumerated().map { offset, one in
        try usage(
          Int64(first + offset + 1), op: one.op, amount: one.amount, subject: "\(one.account)/m")
      }
    }
    func deliver(_ bucket: Int, _ epoch: Int64, _ first: Int, _ list: [Admitted]) throws {
      let outcome = try books.apply(
        try entries(list, first: first), bucket: UInt32(bucket), epoch: epoch, after: Int64(first))
      let stream = streams[bucket]
      switch outcome.answer {
      case .acknowledged(let cursor):
        answers["ack", default: 0] += 1
        if epoch == stream.epoch { auditor.acknowledged(stream, through: cursor) }
      case .gap(let cursor):
        answers["gap", default: 0] += 1
        #expect(cursor < Int64(first))
      case .fenced(let current, _):
        answers["fenced", default: 0] += 1
        #expect(epoch < stream.epoch)
        #expect(current == stream.epoch)
      case .forked(_, _):
        answers["forked", default: 0] += 1
      case .refused(let why): Issue.record("refused: \(why)")
      }
      answers["duplicates", default: 0] += outcome.duplicates.count
      if case .forked = outcome.answer, epoch == stream.epoch { try heal(bucket) }
    }
    func heal(_ bucket: Int) throws {
      let stream = streams[bucket]
      // Sidecars hold everything they ever admitted here that was not acknowledged, but some of
      // them are gone.
      let atPosition = Dictionary(
        stream.entries.enumerated().map { ($1.op, Int64($0 + 1)) }, uniquingKeysWith: { $1 })
      let allAreGone = Int.random(in: 0..<4, using: &random) == 0
      var presented: [OutboxEntry] = []
      for one in everAdmitted[bucket] where auditor.billed[one.op] == nil {
        guard !allAreGone, Int.random(in: 0..<10, using: &random) > 0 else {
          lost.insert(one.op)
          continue
        }
        let sequence =
          atPosition[one.op]
          ?? Int64.random(
            in: 1...Int64(max(1, stream.entries.count)), using: &random)
        presented.append(
          try usage(sequence, op: one.op, amount: one.amount, subject: "\(one.account)/m"))
        auditor.billed[one.op] = one
      }
      let outcome = try books.open(
        bucket, epoch: stream.epoch, entries: presented.shuffled(using: &random),
        seen: Bool.random(using: &random) ? Int64(stream.entries.count) : 0)
      #expect(outcome.isNew)
      streams[bucket] = Stream(epoch: outcome.epoch)
      everAdmitted[bucket] = []
      answers["healed", default: 0] += 1
    }

    for _ in 0..<1500 {
      let bucket = Int.random(in: 0..<3, using: &random)
      switch Int.random(in: 0..<100, using: &random) {
      case 0..<35:
        for _ in 0..<Int.random(in: 1...6, using: &random) {
          let one = Admitted(
            op: nextOp, bucket: bucket,
            account: Self.accounts.randomElement(using: &random) ?? "acct0",
            amount: Int64.random(in: 0...1000, using: &random))
          nextOp += 1
          streams[bucket].entries.append(one)
          everAdmitted[bucket].append(one)
        }
      case 35..<40:
        // A retry of unknown outcome was admitted again: the same id at a new position.
        if let again = auditor.billed.values.min(by: { $0.op < $1.op }),
          let other = auditor.billed[Int.random(in: 1...max(1, nextOp), using: &random)]
        {
          // It goes where the account's bucket is: the same id elsewhere is another operation.
          let one = Bool.random(using: &random) ? again : other
          streams[one.bucket].entries.append(one)
        }
      case 40..<75:
        // One of two shippers cuts a piece, from somewhere around where it believes to be.
        let stream = streams[bucket]
        guard !stream.entries.isEmpty else { continue }
        let cursor = Int(try books.store.cursor(bucket: bucket, epoch: stream.epoch))
        let low = max(0, min(cursor, stream.entries.count) - Int.random(in: 0...8, using: &random))
        let first = min(
          stream.entries.count - 1, low + Int.random(in: 0...9, using: &random))
        let end = min(stream.entries.count, first + Int.random(in: 1...12, using: &random))
        onTheWay.append((bucket, stream.epoch, first, Array(stream.entries[first..<end])))
      case 75..<97:
        guard !onTheWay.isEmpty else { continue }
        let index = Int.random(in: 0..<onTheWay.count, using: &random)
        let batch = onTheWay[index]
        if Bool.random(using: &random) { onTheWay.remove(at: index) }
        try deliver(batch.bucket, batch.epoch, batch.first, batch.entries)
      case 97..<98:
        // Redis comes back from an older snapshot and goes on with other operations.
        let count = streams[bucket].entries.count
        guard count > 2 else { continue }
        streams[bucket].entries.removeLast(Int.random(in: 1...2, using: &random))
        for _ in 0..<3 {
          let one = Admitted(
            op: nextOp, bucket: bucket,
            account: Self.accounts.randomElement(using: &random) ?? "acct0", amount: 7)
          nextOp += 1
          streams[bucket].entries.append(one)
          everAdmitted[bucket].append(one)
        }
        // The fence notices at once: what is on the way under this epoch is void.
        onTheWay.removeAll { $0.bucket == bucket && $0.epoch == streams[bucket].epoch }
        let stream = streams[bucket]
        try deliver(bucket, stream.epoch, 0, stream.entries)
      default: try heal(bucket)
      }
    }
    // Everything that still lies in an outbox is shipped.
    for bucket in 0..<3 {
      let stream = streams[bucket]
      try deliver(bucket, stream.epoch, 0, stream.entries)
    }
    for account in Self.accounts {
      #expect(try books.total(account) == auditor.total(of: account), "\(account), seed \(seed)")
    }
    #expect(try books.count() == Int64(auditor.billed.count))
    #expect(lost.isDisjoint(with: auditor.billed.keys))
    let report = try books.store.verify()
    #expect(report.findings == [])
    for kind in ["ack", "gap", "fenced", "forked", "healed", "duplicates"] {
      #expect(answers[kind, default: 0] > 0, "\(kind) never happened: \(answers)")
    }
  }
}
