// posix_spawn with the choices the harness always makes: own process group, no inherited
// descriptor above 2, default signal handling, output to files.
//
// A shell or Foundation's Process would be shorter, but neither resets an ignored SIGPIPE nor
// closes inherited listeners, and a leaked listener keeps a "killed" server's port alive.

internal import Foundation
internal import Glibc

enum Spawn {
  /// Returns the process id. `arguments` includes argument zero.
  static func start(
    _ executable: String, _ arguments: [String], _ environment: [String], stdout: String,
    stderr: String
  ) throws -> Int32 {
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { _ = unsafe posix_spawn_file_actions_destroy(&actions) }
    let append = O_WRONLY | O_CREAT | O_APPEND
    unsafe posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    unsafe posix_spawn_file_actions_addopen(&actions, 1, stdout, append, 0o600)
    unsafe posix_spawn_file_actions_addopen(&actions, 2, stderr, append, 0o600)
    // Swift's Glibc module does not show addclosefrom_np; what is open now is closed one by one.
    for fd in openDescriptors() where fd > 2 {
      unsafe posix_spawn_file_actions_addclose(&actions, fd)
    }

    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    defer { _ = unsafe posix_spawnattr_destroy(&attributes) }
    var all = sigset_t()
    unsafe sigfillset(&all)
    var none = sigset_t()
    unsafe sigemptyset(&none)
    unsafe posix_spawnattr_setsigdefault(&attributes, &all)
    unsafe posix_spawnattr_setsigmask(&attributes, &none)
    unsafe posix_spawnattr_setpgroup(&attributes, 0)
    let flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK
    unsafe posix_spawnattr_setflags(&attributes, Int16(flags))

    var pid: pid_t = 0
    let code = unsafe withCStrings(arguments) { argv in
      unsafe withCStrings(environment) { envp in
        unsafe posix_spawnp(&pid, executable, &actions, &attributes, argv, envp)
      }
    }
    guard code == 0 else {
      throw ChildProcessError.spawnFailed(executable: executable, code: code)
    }
    return pid
  }

  private static func openDescriptors() -> [Int32] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
    return names.compactMap { Int32($0) }
  }

  /// Lends a NULL-terminated array of C strings for the length of the call.
  private static func withCStrings(
    _ strings: [String], _ body: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> Int32
  ) -> Int32 {
    var pointers: [UnsafeMutablePointer<CChar>?] = unsafe strings.map { unsafe strdup($0) }
    unsafe pointers.append(nil)
    defer { unsafe pointers.forEach { unsafe free($0) } }
    return unsafe pointers.withUnsafeMutableBufferPointer { buffer in
      // The buffer holds at least the terminator, so it has a base address.
      guard let base = buffer.baseAddress else { return EINVAL }
      return unsafe body(base)
    }
  }
}
