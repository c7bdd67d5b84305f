// The parts of the generator that can be held against something else: its templates and its fast
// parser against the real codec, its draws against arithmetic, its RESP against hand-made bytes.

import NIOCore
import Testing
import TollgateBench
import TollgateCore
import TollgateTesting
import TollgateWire

@Suite("Bench: pieces") struct BenchPiecesTests {
  private func names(_ members: Int = 20) throws -> SubjectNames {
    try SubjectNames(prefix: "acct-", accounts: 1000, members: members)
  }

  private func features() throws -> [Name] {
    [try Name("chat.requests"), try Name("tokens.total")]
  }

  @Test("A patched frame is what the codec would have written")
  func patchedFrame() throws {
    for (members, records) in [(0, 1), (20, 1), (20, 3)] {
      let names = try names(members)
      let dialect = try TollgateDialect(
        names: names, features: features(), check: false, token: "", deadlineMilliseconds: 250)
      let out = Bytes()
      var expected: [OperationRecord] = []
      dialect.begin(correlation: 77, records: records, into: out)
      for record in 0..<records {
        let high = 0x0123_4567_89AB_CDEF + UInt64(record)
        let low: UInt64 = 0xFEDC_BA98_7654_3210
        let amounts: [Int64] = [1, 4818 + Int64(record)]
        unsafe amounts.withUnsafeBufferPointer { amounts in
          guard let start = amounts.baseAddress else { return }
          unsafe dialect.render(
            Asked(subject: members == 0 ? 417 : 417 * 20 + 13, high: high, low: low),
            amounts: start, into: out)
        }
        expected.append(
          OperationRecord(
            id: OperationID(high: high, low: low),
            subject: try Subject(members == 0 ? "acct-000417" : "acct-000417/m0013"),
            items: [
              Item(feature: try Name("chat.requests"), amount: 1),
              Item(feature: try Name("tokens.total"), amount: 4818 + Int64(record)),
            ]))
      }
      var frame = ByteBuffer()
      frame.writeFrame(
        .consume, OperationBatch(expected), correlation: 77, deadlineMilliseconds: 250)
      #expect(out.array(0..<out.count) == Array(frame.readableBytesView))
    }
  }

  @Test("The fast parser agrees with the codec on every reason, source and error")
  func fastParser() throws {
    let dialect = try TollgateDialect(
      names: names(), features: features(), check: false, token: "", deadlineMilliseconds: 0)
    var frames = ByteBuffer()
    var expected: [Verdict] = []
    for reason in Reason.allCases {
      for source in Source.allCases {
        for replayed in [false, true] {
          let decision = Decision(
            reason: reason, source: source, binding: try Name("tokens"), bindingItem: 1,
            retryAfter: 5000, time: WallTime(milliseconds: 1_700_000_000_000), replayed: replayed,
            items: [.init(limit: try Name("x"), remaining: 5, settled: 6)])
          frames.writeFrame(
            DecisionBatch([.decision(decision)]), correlation: UInt64(expected.count + 1))
          expected.append(
            reason.isAllowed
              ? .allowed(reason: reason.rawValue, source: source.rawValue, replayed: replayed)
              : .denied(reason: reason.rawValue, source: source.rawValue, replayed: replayed))
        }
      }
    }
    for code in ErrorCode.allCases {
      frames.writeFrame(
        DecisionBatch([.error(code, message: "why")]), correlation: UInt64(expected.count + 1))
      expected.append(.error(code.rawValue))
      frames.writeFrame(
        ErrorReply(code: code, message: "why"), correlation: UInt64(expected.count + 1))
      expected.append(.error(code.rawValue))
    }
    // Byte by byte: nothing may be taken before it is whole.
    let input = Bytes()
    var cursor = Cursor()
    var seen: [Verdict] = []
    for byte in frames.readableBytesView {
      input.append([byte])
      while case .reply(let correlation, _, let verdict)? = try dialect.next(input, &cursor) {
        seen.append(verdict)
        #expect(correlation == UInt64(seen.count))
      }
    }
    #expect(seen == expected)
  }

  @Test("The records of one answer are taken in their order, an error frame as a whole")
  func recordsOfAnAnswer() throws {
    let dialect = try TollgateDialect(
      names: names(), features: features(), check: false, token: "", deadlineMilliseconds: 0)
    let decision = Decision(
      reason: .allowed, source: .redis, time: WallTime(milliseconds: 1_700_000_000_000))
    var frames = ByteBuffer()
    frames.writeFrame(
      DecisionBatch([
        .decision(decision), .error(.overloaded, message: "later"), .decision(decision),
      ]), correlation: 9)
    frames.writeFrame(ErrorReply(code: .unavailable, message: ""), correlation: 10)
    let input = Bytes(Array(frames.readableBytesView))
    var cursor = Cursor()
    var seen: [Incoming] = []
    while let next = try dialect.next(input, &cursor) { seen.append(next) }
    let allowed = Verdict.allowed(
      reason: Reason.allowed.rawValue, source: Source.redis.rawValue, replayed: false)
    #expect(
      seen == [
        .reply(correlation: 9, record: 0, allowed),
        .reply(correlation: 9, record: 1, .error(ErrorCode.overloaded.rawValue)),
        .reply(correlation: 9, record: 2, allowed),
        .reply(correlation: 10, record: -1, .error(ErrorCode.unavailable.rawValue)),
      ])
    #expect(cursor.position == input.count)
  }

  @Test("Bytes of another protocol are an error, not a reply")
  func foreignBytes() throws {
    let dialect = try TollgateDialect(
      names: names(), features: features(), check: false, token: "", deadlineMilliseconds: 0)
    #expect(throws: BenchError.self) {
      var cursor = Cursor()
      _ = try dialect.next(Bytes(Array("HTTP/1.1 400 Bad Request\r\n\r\n".utf8)), &cursor)
    }
  }

  @Test("RESP replies are measured whole or not at all")
  func respLengths() throws {
    let replies = [
      "+PONG\r\n", ":42\r\n", "-ERR no\r\n", "$3\r\nabc\r\n", "$-1\r\n", "*0\r\n", "*-1\r\n",
      "*3\r\n:1\r\n$2\r\nxy\r\n*1\r\n+a\r\n",
    ]
    for reply in replies {
      let bytes = Array(reply.utf8)
      for cut in 0..<bytes.count {
        #expect(try RESP.length(of: Bytes(bytes[..<cut])) == nil, "\(reply) cut at \(cut)")
      }
      #expect(try RESP.length(of: Bytes(bytes + [43])) == bytes.count)
    }
  }

  @Test("One subject after another: each once before any of them twice, over threads too")
  func eachSubject() throws {
    let names = try SubjectNames(prefix: "acct-", accounts: 5, members: 2, suffix: "/run")
    #expect(names.path(3) == "acct-000001/m0001/run")
    let workload = Workload(names: names, accounts: nil, amounts: [.constant(1)], seed: 1)
    var seen: [Int] = []
    for thread in 0..<3 {
      var mine = workload.forThread(thread, of: 3)
      var amounts: [Int64] = [0]
      for _ in stride(from: thread, to: names.count, by: 3) {
        seen.append(unsafe mine.next(into: &amounts))
      }
      #expect(unsafe mine.next(into: &amounts) == thread)
    }
    #expect(seen.sorted() == Array(0..<names.count))
    var thrice = Workload(
      names: names, accounts: nil, times: 3, amounts: [.constant(1)], seed: 1
    ).forThread(1, of: 2)
    var amounts: [Int64] = [0]
    let drawn = (0..<7).map { _ in unsafe thrice.next(into: &amounts) }
    #expect(drawn == [1, 1, 1, 3, 3, 3, 5])
  }

  @Test("Zipf draws follow their weights")
  func zipf() {
    let ranks = Popularity.zipf(100, exponent: 1)
    let seed: UInt64 = 42
    print("seed \(seed)")
    var random = SplitMix(seed: seed)
    var counts = [Int](repeating: 0, count: 100)
    for _ in 0..<200_000 { counts[ranks.draw(&random)] += 1 }
    let harmonic = (1...100).reduce(0.0) { $0 + 1 / Double($1) }
    for rank in [0, 1, 9, 99] {
      let expected = 200_000 / harmonic / Double(rank + 1)
      #expect(abs(Double(counts[rank]) - expected) < 0.15 * expected + 20)
    }
  }

  @Test("A trace row goes to the same subject on any number of threads")
  func traceSubjects() throws {
    var random = SplitMix(seed: 3)
    let rows = TraceGenerator.rows(500, using: &random)
    let workload = Workload(
      names: try names(), accounts: .zipf(1000, exponent: 1.1), amounts: [.constant(1), .total],
      rows: rows, seed: 9)
    func draw(_ threads: Int) -> [Int: Int] {
      var subjects: [Int: Int] = [:]
      for thread in 0..<threads {
        var mine = workload.forThread(thread, of: threads)
        var amounts: [Int64] = [0, 0]
        var row = thread
        while !mine.isExhausted {
          subjects[row] = unsafe mine.next(into: &amounts)
          #expect(amounts[1] == rows[row].contextTokens + rows[row].generatedTokens)
          row += threads
        }
      }
      return subjects
    }
    let one = draw(1)
    #expect(one.count == 500)
    #expect(draw(3) == one)
  }

  @Test("Units added to a counter are known across one period boundary, and not across two")
  func counterDifference() {
    func reading(_ start: Int64, _ settled: Int64, _ was: Int64 = 0, _ had: Int64 = 0)
      -> CounterReading
    {
      CounterReading(start: start, settled: settled, previousStart: was, previousSettled: had)
    }
    #expect(reading(100, 9).added(since: reading(100, 4), at: 150) == 5)
    #expect(reading(200, 3, 100, 9).added(since: reading(100, 4), at: 150) == 8)
    #expect(reading(300, 3, 200, 9).added(since: reading(100, 4), at: 150) == nil)
    #expect(reading(200, 3).added(since: nil, at: 150) == 3)
    #expect(reading(300, 3, 200, 9).added(since: nil, at: 150) == nil)
  }

  @Test("The auditor reads a stored counter")
  func storedCounter() {
    // Written by hand from the MessagePack rules: 300, 7, 0, 0, 200, 2^32, 0.
    let bytes: [UInt8] = [
      0xCD, 0x01, 0x2C, 0x07, 0, 0, 0xCC, 200, 0xCF, 0, 0, 0, 1, 0, 0, 0, 0, 0,
    ]
    #expect(
      CounterReading(bytes)
        == CounterReading(start: 300, settled: 7, previousStart: 200, previousSettled: 1 << 32))
    #expect(CounterReading([0xCD, 1]) == nil)
    #expect(CounterReading([0xA1, 0x41]) == nil)
  }
}
