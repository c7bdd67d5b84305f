// The harness's small tools: clock, randomness, polling, ports, child processes.

import Foundation
import Testing
import TollgateTesting

@Suite struct HarnessToolsTests {
  @Test func theManualClockMovesOnlyWhenTold() {
    let clock = ManualClock(wallMilliseconds: 1000, monotonicNanoseconds: 5)
    clock.advance(milliseconds: 2)
    #expect(clock.wallMilliseconds == 1002)
    #expect(clock.monotonicNanoseconds == 2_000_005)
    clock.stepWall(milliseconds: -500)
    #expect(clock.wallMilliseconds == 502)
    #expect(clock.monotonicNanoseconds == 2_000_005)
  }

  @Test func splitMixGivesItsPublishedStream() {
    var random = SeededRandom(seed: 1_234_567)
    #expect(random.next() == 6_457_827_717_110_365_317)
    #expect(random.next() == 3_203_168_211_198_807_973)
  }

  @Test func zipfIsSkewedAndWithinBounds() {
    var random = SeededRandom.fromEnvironment("zipfIsSkewedAndWithinBounds")
    let zipf = Zipf(100, 1.1)
    var counts = [Int](repeating: 0, count: 100)
    for _ in 0..<20_000 { counts[zipf.sample(using: &random)] += 1 }
    #expect(counts[0] > 3000 && counts[0] > counts[1] && counts[1] > counts[20])
    #expect(Zipf(1, 1).sample(using: &random) == 0)
  }

  @Test func eventuallyGivesUpAndSaysWhatItWaitedFor() async throws {
    let error = #expect(throws: EventuallyTimedOut.self) {
      try eventually(within: .milliseconds(20), "pigs fly") { false }
    }
    #expect(error?.description.contains("pigs fly") == true)
    let calls = ManualClock(wallMilliseconds: 0)
    try await eventually {
      await Task.yield()
      calls.stepWall(milliseconds: 1)
      return calls.wallMilliseconds == 3
    }
  }

  @Test func freePortsDifferAndCanBeBound() throws {
    let ports = try (0..<20).map { _ in try freePort() }
    #expect(Set(ports).count == 20)
    let fd = try Socket.listen(.tcp("127.0.0.1", ports[0]))
    defer { Socket.close(fd) }
    #expect(Socket.localPort(fd) == ports[0])
  }

  @Test func aTemporaryDirectoryGoesWithItsOwner() throws {
    var directory: TemporaryDirectory? = try TemporaryDirectory()
    let path = try #require(directory).write("file", "text")
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "text")
    directory = nil
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test func aChildReportsItsOutputAndExitCode() throws {
    let child = try ChildProcess(
      "/bin/sh", ["-c", "echo out; echo err >&2; echo $X; exit 7"], environment: ["X": "env"])
    #expect(try child.wait() == .exited(7))
    #expect(child.standardOutput == "out\nenv\n")
    #expect(child.standardError == "err\n")
    #expect(!child.signal(SIGTERM), "a reaped process is never signalled")
  }

  @Test func aChildInheritsNoDescriptorAndItsOwnGroup() throws {
    let listener = try Socket.listen(.tcp("127.0.0.1", freePort()))
    defer { Socket.close(listener) }
    // Cleared on purpose: what is open across exec must be closed by the spawn itself.
    _ = fcntl(listener, F_SETFD, 0)
    let child = try ChildProcess("/bin/sh", ["-c", "ls /proc/$$/fd; cut -d' ' -f5 /proc/$$/stat"])
    #expect(try child.wait() == .exited(0))
    let words = child.standardOutput.split(separator: "\n").map(String.init)
    #expect(words.contains("0") && words.contains("2"))
    #expect(words.dropLast().allSatisfy { Int($0) ?? 99 <= 10 && $0 != "\(listener)" })
    #expect(words.last == "\(child.pid)")
  }

  @Test func aKilledChildIsReapedAndAWaitHasADeadline() throws {
    let child = try ChildProcess("/bin/sleep", ["600"])
    #expect(throws: ChildProcessError.self) { try child.wait(within: .milliseconds(10)) }
    try child.pause()
    child.kill()
    #expect(child.status == .signaled(SIGKILL))
  }

  @Test func aMissingExecutableIsAnErrorThatNamesIt() {
    let error = #expect(throws: ChildProcessError.self) {
      try ChildProcess("/nonexistent/tool")
    }
    #expect(error?.description.contains("/nonexistent/tool") == true)
  }

  @Test func theBuiltBinaryIsFound() throws {
    let path = try ChildProcess.tollgateBinary()
    #expect(FileManager.default.isExecutableFile(atPath: path))
  }
}
