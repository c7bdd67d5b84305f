// The commands of README, run as they stand there.

import Foundation
import Testing
import TollgateTesting

@Suite(.serialized) struct ReadmeTests {
  /// The block of commands after "By hand".
  private static func commands() throws -> String {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    let text = try String(contentsOf: root.appendingPathComponent("README.md"), encoding: .utf8)
    let after = try #require(text.range(of: "By hand"))
    let parts = text[after.upperBound...].components(separatedBy: "```\n")
    return parts[1]
  }

  @Test func theCommandsByHandDoWhatTheySay() throws {
    let directory = try TemporaryDirectory("tg-readme")
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    try FileManager.default.createSymbolicLink(
      atPath: directory.file("deploy"),
      withDestinationPath: root.appendingPathComponent("deploy").path)
    let binary = URL(fileURLWithPath: try ChildProcess.tollgateBinary())
    let script = """
      set -e
      cd "$1"
      export PATH="$2:$PATH"
      # Redis saves before it ends, so the folder must still be there.
      end() {
        set +e
        redis=$(cat redis.pid)
        kill $(jobs -p)
        wait
        kill "$redis"
        while kill -0 "$redis" 2>/dev/null; do sleep 0.05; done
      }
      trap end EXIT
      \(try Self.commands())
      """
    let file = directory.file("by-hand.sh")
    try script.write(toFile: file, atomically: true, encoding: .utf8)
    let log = directory.file("log")
    let child = try ChildProcess(
      "/bin/bash", [file, directory.file(""), binary.deletingLastPathComponent().path],
      stdout: log, stderr: log)
    let status = try child.wait(within: .seconds(60))
    let said = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
    #expect(status == .exited(0), "\(said)")
    #expect(said.contains("allowed (ALLOWED)"), "\(said)")
    #expect(said.contains("acme/alice: allowed"), "\(said)")
    #expect(said.contains("difference 0"), "\(said)")
  }
}
