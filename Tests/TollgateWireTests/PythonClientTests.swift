// The proof that PROTOCOL.md suffices: a client written from it alone, in another language, passes
// the same vectors.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateWire

@Suite(.blocking) struct PythonClientTests {
  @Test func `the Python client passes every vector`() async throws {
    let script = Repository.path("proto/clients/python/test_vectors.py")
    let process = try ChildProcess("python3", ["-B", script])
    let status = try await process.waitAsync(within: .seconds(300))
    #expect(status == .exited(0), "\(process.standardOutput) \(process.standardError)")
    let count = try Repository.vectors().count
    #expect(process.standardOutput.contains("ran \(count) vectors"))
  }

  @Test func `the Python client keeps its failures apart against a model server`() async throws {
    let script = Repository.path("proto/clients/python/test_client.py")
    let process = try ChildProcess("python3", ["-B", script])
    let status = try await process.waitAsync(within: .seconds(600))
    #expect(status == .exited(0), "\(process.standardOutput) \(process.standardError)")
    #expect(process.standardError.contains("Ran 24 tests"))
  }

  @Test func `the Python client settles what was used, whatever is lost on the way`() async throws {
    let script = Repository.path("proto/clients/python/test_reservations.py")
    let process = try ChildProcess("python3", ["-B", script])
    let status = try await process.waitAsync(within: .seconds(600))
    #expect(status == .exited(0), "\(process.standardOutput) \(process.standardError)")
    #expect(process.standardError.contains("Ran 30 tests"))
  }

  @Test func `the Python client holds the same registries`() async throws {
    let program = """
      import sys; sys.path.insert(0, sys.argv[1]); import tollgate as t
      for table in (t.OPCODE_NAMES, t.REASONS, dict(enumerate(t.SOURCES)), t.ERRORS):
          print(",".join(f"{n}={table[n]}" for n in sorted(table)))
      print(",".join(f"{n}={name}" for name, n in sorted(t.ADMIN_METHODS.items(), key=lambda p: p[1])))
      """
    let folder = Repository.path("proto/clients/python")
    let process = try ChildProcess("python3", ["-B", "-c", program, folder])
    let status = try await process.waitAsync(within: .seconds(300))
    #expect(status == .exited(0), "\(process.standardError)")
    let expected = [
      Opcode.allCases.map { "\($0.rawValue)=\($0.name)" },
      Reason.allCases.map { "\($0.rawValue)=\($0.name)" },
      Source.allCases.map { "\($0.rawValue)=\($0.name)" },
      ErrorCode.allCases.map { "\($0.rawValue)=\($0.name)" },
      AdminMethod.allCases.map { "\($0.rawValue)=\($0.name)" },
    ].map { $0.joined(separator: ",") }
    #expect(process.standardOutput.split(separator: "\n").map(String.init) == expected)
  }
}
