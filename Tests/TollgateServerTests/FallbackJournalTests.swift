// The fallback journal on real files: whatever a killed process or a full disk leaves, complete
// lines are kept, half ones are cut off, and nothing written afterwards is spoilt by them.

import Foundation
import NIOConcurrencyHelpers
import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateServer

private final class Disk: Sendable {
  /// Bytes it still takes.
  let room = NIOLockedValueBox(Int.max)

  func write(_ descriptor: Int32, _ bytes: ArraySlice<UInt8>) -> Int {
    let count = room.withLockedValue { room in
      let count = min(room, bytes.count)
      room -= count
      return count
    }
    guard count > 0 else { return -1 }
    return FallbackJournal.systemWrite(descriptor, bytes.prefix(count))
  }
}

@Suite("Fallback journal", .blocking)
struct FallbackJournalTests {
  private let directory: TemporaryDirectory
  private var path: String { directory.file("journal") }
  private let now = NIODeadline.uptimeNanoseconds(1_000_000_000)

  init() throws { directory = try TemporaryDirectory() }

  private func operation(_ n: UInt64) throws -> FallbackOperation {
    try FallbackSamples.operation(n)
  }

  private func queue(_ limits: FallbackQueue.Limits = .init(), disk: Disk? = nil) throws
    -> FallbackQueue
  {
    let write = disk.map { disk in { @Sendable in disk.write($0, $1) } }
    let journal = try FallbackJournal(
      path: path, bytesMax: limits.journalFileBytesMax,
      write: write ?? FallbackJournal.systemWrite)
    return FallbackQueue(limits: limits, journal: journal, now: now)
  }

  /// What a journal says at its opening.
  private func opened(_ path: String) throws -> (records: [FallbackRecord], damaged: Int, torn: Int)
  {
    let journal = try FallbackJournal(path: path)
    return (journal.recovered, journal.damaged.count, journal.tornBytes)
  }

  private func bytes(_ path: String) throws -> [UInt8] {
    Array(try Data(contentsOf: URL(fileURLWithPath: path)))
  }

  private func resolve(
    _ queue: FallbackQueue, _ errands: [FallbackQueue.Errand], _ verdict: FallbackVerdict
  ) {
    for errand in errands {
      _ = queue.resolve(errand, verdict, now: now, at: WallTime(milliseconds: 5))
    }
  }

  /// One line of every kind.
  private func sample() throws -> [FallbackRecord] {
    [
      .admitted(try operation(1)), .admitted(try operation(2)), .settled(try operation(1).id),
      .cancelled(try operation(2).id), .admitted(try operation(3)),
      .refused(
        FallbackRefusal(
          operation: try operation(3), reason: "a \"reason\"\nof two lines",
          time: WallTime(milliseconds: 12))), .admitted(try operation(4)),
    ]
  }

  @Test func entriesComeBackAfterTheProcessIsGone() throws {
    do {
      let queue = try queue()
      for n: UInt64 in 1...4 {
        #expect(queue.admit(try operation(n), claims: [], now: now) == .kept)
      }
      #expect(queue.cancel(try operation(2), now: now) == .annulled(isKept: true))
      let errands = queue.take(3, now: now)
      resolve(queue, [errands[0]], .done)
      resolve(queue, [errands[2]], .refused("other body"))
    }
    let queue = try queue()
    #expect(queue.status.pending == 2 && queue.status.refused == 1)
    #expect(queue.answer(to: try operation(1)) == nil, "what was posted is not posted again")
    #expect(queue.answer(to: try operation(2)) == .cancelled)
    #expect(queue.answer(to: try operation(3)) == .allowed)
    #expect(queue.refusals(9).map(\.reason) == ["other body"])
    let errands = queue.take(9, now: now)
    #expect(errands.map(\.operation) == [try operation(2), try operation(4)])
    #expect(errands.map(\.intent) == [.cancel, .post])
    resolve(queue, errands, .done)
    #expect(queue.cancel(try operation(3), now: now) == .unknown)
    #expect(try bytes(path).isEmpty, "nothing is remembered: the file is empty")
  }

  /// What an operator did with parked ones is remembered like everything else.
  @Test func whatWasRetriedOrDroppedStaysSo() throws {
    do {
      let queue = try queue()
      for n: UInt64 in 1...3 {
        #expect(queue.admit(try operation(n), claims: [], now: now) == .kept)
      }
      resolve(queue, queue.take(9, now: now), .refused("other body"))
      guard case .waits = queue.retry(try operation(1).id, now: now) else {
        Issue.record("not retried")
        return
      }
      #expect(queue.drop(try operation(2).id) != nil)
    }
    do {
      let queue = try queue()
      #expect(queue.status.pending == 1 && queue.status.refused == 1)
      #expect(queue.answer(to: try operation(2)) == nil)
      #expect(queue.refusals(9).map(\.operation) == [try operation(3)])
      resolve(queue, queue.take(9, now: now), .refused("still"))
      #expect(queue.drop(try operation(3).id) != nil)
    }
    let queue = try queue()
    #expect(queue.status.pending == 0 && queue.refusals(9).map(\.reason) == ["still"])
    #expect(queue.drop(try operation(1).id) != nil)
    #expect(try bytes(path).isEmpty, "nothing is remembered: the file is empty")
  }

  @Test func twoProcessesCannotShareAJournal() throws {
    let first = try FallbackJournal(path: path)
    #expect(throws: FallbackJournal.Failure.self) { _ = try FallbackJournal(path: path) }
    _ = consume first
  }

  // MARK: - Damage

  /// Cut at every byte: the complete lines are there, the half one is cut off, and what is appended
  /// next is read as it was written.
  @Test func aCutAtEveryByteLosesTheHalfLineOnly() throws {
    let records = try sample()
    let lines = records.map(\.line)
    let all = lines.flatMap { $0 }
    var ends = [0]
    for line in lines { ends.append(ends[ends.count - 1] + line.count) }
    let cut = directory.file("cut")
    let added = FallbackRecord.admitted(try operation(9))
    for count in 0...all.count {
      try Data(all.prefix(count)).write(to: URL(fileURLWithPath: cut))
      let complete = ends.lastIndex { $0 <= count } ?? 0
      do {
        var journal = try FallbackJournal(path: cut)
        let found = (journal.recovered, journal.damaged.count, journal.tornBytes)
        let isAppended = journal.append(added.line)
        try #require(found.0 == Array(records.prefix(complete)), "cut at \(count)")
        try #require(found.1 == 0 && found.2 == count - ends[complete], "cut at \(count)")
        try #require(isAppended)
      }
      let again = try opened(cut)
      try #require(again.records == Array(records.prefix(complete)) + [added], "cut at \(count)")
      try #require(again.damaged == 0 && again.torn == 0, "cut at \(count)")
    }
    print("journal: \(all.count + 1) cuts of \(records.count) lines")
  }

  /// One byte is another: its line is not believed (two lines, where it was the newline between
  /// them), all others are.
  @Test func aDamagedByteCostsItsLineOnly() throws {
    let records = try sample()
    let lines = records.map(\.line)
    let all = lines.flatMap { $0 }
    let copy = directory.file("copy")
    for position in all.indices {
      var bytes = all
      bytes[position] ^= 0x15
      try Data(bytes).write(to: URL(fileURLWithPath: copy))
      let found = try opened(copy)
      var line = 0
      var start = 0
      while start + lines[line].count <= position {
        start += lines[line].count
        line += 1
      }
      var expected = records
      let isNewline = all[position] == 0x0A
      expected.removeSubrange(line..<min(records.count, line + (isNewline ? 2 : 1)))
      try #require(found.records == expected, "byte \(position)")
      try #require(found.damaged + (found.torn > 0 ? 1 : 0) > 0, "byte \(position) is reported")
    }
  }

  /// The disk fills up inside the write, at every byte of it.
  @Test func aShortWriteIsTakenBackAndLetsNothingThrough() throws {
    let line = FallbackRecord.admitted(try operation(2)).line.count
    for room in 0..<line {
      try? FileManager.default.removeItem(atPath: path)
      let disk = Disk()
      do {
        let queue = try queue(disk: disk)
        try #require(queue.admit(try operation(1), claims: [], now: now) == .kept)
        disk.room.withLockedValue { $0 = room }
        try #require(queue.admit(try operation(2), claims: [], now: now) == .full)
        try #require(queue.answer(to: try operation(2)) == nil)
        disk.room.withLockedValue { $0 = Int.max }
        try #require(queue.admit(try operation(3), claims: [], now: now) == .kept)
      }
      let found = try opened(path)
      try #require(
        found.records == [.admitted(try operation(1)), .admitted(try operation(3))],
        "room for \(room)")
      try #require(found.damaged == 0 && found.torn == 0)
    }
  }

  /// A cancel that cannot be written down is not said to be done.
  @Test func aCancelOnAFullDiskIsNotKept() throws {
    let disk = Disk()
    let queue = try queue(disk: disk)
    #expect(queue.admit(try operation(1), claims: [], now: now) == .kept)
    disk.room.withLockedValue { $0 = 3 }
    #expect(queue.cancel(try operation(1), now: now) == .annulled(isKept: false))
    #expect(!queue.isAnnulled(try operation(1)))
    #expect(queue.take(1, now: now).map(\.intent) == [.cancel], "it is not posted all the same")
    disk.room.withLockedValue { $0 = Int.max }
    #expect(queue.cancel(try operation(1), now: now) == .annulled(isKept: true))
    #expect(queue.isAnnulled(try operation(1)))
  }

  // MARK: - Size

  /// Posted as fast as they come, with a few that stay: the file does not grow with what passed.
  @Test func theFileStaysWithinItsBound() throws {
    var limits = FallbackQueue.Limits()
    limits.journalWasteMax = 8192
    var largest = 0
    do {
      let queue = try queue(limits)
      for n: UInt64 in 1...5 {
        #expect(queue.admit(try operation(n), claims: [], now: now) == .kept)
      }
      resolve(queue, queue.take(5, now: now).filter { $0.operation.id.high == 5 }, .refused("x"))
      for n: UInt64 in 6...3000 {
        #expect(queue.admit(try operation(n), claims: [], now: now) == .kept)
        resolve(queue, queue.take(9, now: now), .done)
        queue.compactIfLarge()
        largest = max(largest, queue.status.journalBytes)
      }
      #expect(try bytes(path).count == queue.status.journalBytes)
      #expect(throws: FallbackJournal.Failure.self) { _ = try FallbackJournal(path: path) }
    }
    let line = FallbackRecord.admitted(try operation(3000)).line.count
    #expect(largest < 8192 + 2 * 7 * line + 1000, "\(largest) bytes")
    let queue = try queue(limits)
    #expect(queue.status.pending == 4 && queue.status.refused == 1)
    #expect(queue.take(9, now: now).map(\.operation.id.high) == [1, 2, 3, 4])
  }

  @Test func aJournalAtItsBoundLetsNothingMoreThrough() throws {
    var limits = FallbackQueue.Limits()
    limits.journalBytesMax = 3 * FallbackRecord.admitted(try operation(1)).line.count + 10
    let queue = try queue(limits)
    for n: UInt64 in 1...3 {
      #expect(queue.admit(try operation(n), claims: [], now: now) == .kept)
    }
    #expect(queue.admit(try operation(4), claims: [], now: now) == .full)
    resolve(queue, queue.take(1, now: now), .done)
    #expect(queue.admit(try operation(4), claims: [], now: now) == .kept)
  }

  /// What is written while the new file is being synced is in both.
  @Test(arguments: [true, false]) func nothingWrittenDuringARewriteIsLost(isSynced: Bool) throws {
    let (kept, added) = (
      FallbackRecord.admitted(try operation(1)), FallbackRecord.admitted(try operation(2))
    )
    do {
      var journal = try FallbackJournal(path: path)
      let first = journal.append(kept.line) && journal.append(.init(repeating: 0x78, count: 99))
      let begun = journal.beginRewrite(kept.line)
      close(try #require(begun))
      let second = journal.append([0x0A]) && journal.append(added.line)
      journal.endRewrite(isSynced: isSynced)
      let third = journal.append(FallbackRecord.settled(try operation(1).id).line)
      #expect(first && second && third)
    }
    let found = try opened(path)
    #expect(found.records == [kept, added, .settled(try operation(1).id)])
    #expect(found.damaged == (isSynced ? 0 : 1))
    #expect(!FileManager.default.fileExists(atPath: path + ".new"))
  }

  /// Killed in the middle of a rewrite: the old file counts.
  @Test func anUnfinishedRewriteIsForgotten() throws {
    let kept = FallbackRecord.admitted(try operation(1))
    try Data(kept.line).write(to: URL(fileURLWithPath: path))
    try Data(kept.line.prefix(9)).write(to: URL(fileURLWithPath: path + ".new"))
    #expect(try opened(path).records == [kept])
    #expect(!FileManager.default.fileExists(atPath: path + ".new"))
  }

  // MARK: - Whose it is

  private func deployment(_ id: String, buckets: Int) throws -> Deployment {
    Deployment(id: try Name(id), buckets: buckets, mode: .dev)
  }

  /// What it holds as that deployment's.
  private func records(_ deployment: Deployment) throws -> [FallbackRecord] {
    let journal = try FallbackJournal(path: path, deployment: deployment)
    return journal.recovered
  }

  /// As that deployment: these lines, and whether all were written.
  private func append(_ records: [FallbackRecord], _ deployment: Deployment) throws -> Bool {
    var journal = try FallbackJournal(path: path, deployment: deployment)
    var isWritten = true
    for record in records { isWritten = journal.append(record.line) && isWritten }
    return isWritten
  }

  @Test func whatAnotherDeploymentLetThroughIsNotPosted() throws {
    let staging = try deployment("staging", buckets: 64)
    let production = try deployment("production", buckets: 16)
    let kept = FallbackRecord.admitted(try operation(1))
    #expect(try append([kept], staging))
    let found = try bytes(path)
    let failure = #expect(throws: FallbackJournal.Failure.self) {
      _ = try records(production)
    }
    let text = failure?.description ?? ""
    for part in [
      path, "deployment: configured production, recorded staging",
      "buckets: configured 16, recorded 64", "start once with", "remove the file",
    ] {
      #expect(text.contains(part), "\(text)")
    }
    #expect(try bytes(path) == found)
    #expect(try records(staging) == [kept])
    // Done with: it is anybody's.
    #expect(try append([.settled(try operation(1).id)], staging))
    #expect(try records(production).isEmpty)
    #expect(try bytes(path).isEmpty)
    #expect(try append([kept], production))
    #expect(throws: FallbackJournal.Failure.self) { _ = try records(staging) }
  }

  @Test func whatAnOlderReleaseWroteIsOurs() throws {
    let staging = try deployment("staging", buckets: 64)
    let kept = FallbackRecord.admitted(try operation(1))
    try Data(kept.line).write(to: URL(fileURLWithPath: path))
    #expect(try records(staging) == [kept])
    #expect(try records(staging) == [kept])
    let other = try deployment("staging", buckets: 16)
    #expect(throws: FallbackJournal.Failure.self) { _ = try records(other) }
  }

  /// Emptied and begun again, and written anew.
  @Test func whoseItIsStandsInWhateverIsWritten() throws {
    let staging = try deployment("staging", buckets: 64)
    let kept = FallbackRecord.admitted(try operation(1))
    let whole = JournalOwner(staging).line + kept.line
    do {
      var journal = try FallbackJournal(path: path, deployment: staging)
      let first = journal.append(kept.line)
      let written = try bytes(path)
      #expect(first && written == whole)
      journal.reset()
      let emptied = try bytes(path)
      let second = journal.append(kept.line) && journal.append(kept.line)
      #expect(emptied.isEmpty && second)
      let begun = journal.beginRewrite(kept.line)
      close(try #require(begun))
      journal.endRewrite(isSynced: true)
      let size = journal.size
      #expect(size == whole.count)
    }
    #expect(try bytes(path) == whole)
    #expect(try records(staging) == [kept])
  }
}
