// Runs a program of kernel calls and matrix products on addresses, in place of the Python around a
// compiled region. Callers have checked the layout of every tensor.
//
// A program is an array of int64: the number of threads for a product, then instructions. A tensor
// is encoded as two numbers: the index of its base (inputs, then results, then the scratch memory)
// and an offset in bytes.

#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

namespace {

// Returns the memory of a tensor object; torch's own function, called at its address.
void* (*data_ptr)(PyObject*);

// Its integers have 32 or 64 bits. Pointers to 64-bit integers are passed; a function that reads
// 32 bits reads the same value, because the values are small and the machine is little-endian.
using Gemm = void(const char*, const char*, const int64_t*, const int64_t*, const int64_t*,
                  const void*, const void*, const int64_t*, const void*, const int64_t*,
                  const void*, void*, const int64_t*);
Gemm* sgemm;  // BLAS functions that torch's own products call
Gemm* dgemm;

// MKL's function to set the number of threads for products of this thread, 0 for the default.
// Returns the previous number. Null with another BLAS.
int (*set_threads)(int);

constexpr int kArguments = 1024;  // largest number of arguments; encode.py refuses kernels with more
constexpr int kStep = 16;        // there is a call for each multiple of this number of arguments

class Reader {
 public:
  Reader(const int64_t* at, char* const* bases) : at_(at), bases_(bases) {}

  int64_t number() { return *at_++; }
  int size() { return static_cast<int>(*at_++); }

  char* tensor() {
    char* base = bases_[at_[0]];
    char* address = base + at_[1];
    at_ += 2;
    return address;
  }

 private:
  const int64_t* at_;
  char* const* bases_;
};

template <size_t... kPlaces>
void call_with(void* kernel, char* const* arguments, std::index_sequence<kPlaces...>) {
  reinterpret_cast<void (*)(decltype((void)kPlaces, static_cast<char*>(nullptr))...)>(kernel)(
      arguments[kPlaces]...);
}

template <size_t kCount>
void call(void* kernel, char* const* arguments) {
  call_with(kernel, arguments, std::make_index_sequence<kCount>());
}

using Call = void (*)(void*, char* const*);

template <size_t... kSteps>
constexpr auto calls(std::index_sequence<kSteps...>) {
  struct Table {
    Call of[sizeof...(kSteps)];
  };
  return Table{{call<kSteps * kStep>...}};
}

// address, count, tensors. Up to kStep - 1 extra null arguments are passed, which the kernel does
// not read; in all 64-bit calling conventions the caller removes the arguments.
void run_kernel(Reader& in) {
  static constexpr auto kCalls = calls(std::make_index_sequence<kArguments / kStep + 1>());
  void* kernel = reinterpret_cast<void*>(in.number());
  const int count = in.size(), steps = (count + kStep - 1) / kStep;
  char* arguments[kArguments];
  for (int i = 0; i < count; ++i) arguments[i] = in.tensor();
  std::fill(arguments + count, arguments + steps * kStep, nullptr);
  kCalls.of[steps](kernel, arguments);
}

// In the order of BLAS, which is column-major:
// transposed a, transposed b, m, n, k, a, lda, b, ldb, is added to c, c, ldc
template <typename T>
void run_product(Reader& in, Gemm* gemm) {
  const char ta = in.number() ? 't' : 'n', tb = in.number() ? 't' : 'n';
  const int64_t m = in.number(), n = in.number(), k = in.number();
  const char* a = in.tensor();
  const int64_t lda = in.number();
  const char* b = in.tensor();
  const int64_t ldb = in.number();
  const T alpha = 1, beta = in.number() ? 1 : 0;
  char* c = in.tensor();
  const int64_t ldc = in.number();
  gemm(&ta, &tb, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

// rows, columns, source, strides of its rows and columns, target, stride of its rows
template <typename T>
void run_fill(Reader& in) {
  const int64_t rows = in.number(), columns = in.number();
  const T* source = reinterpret_cast<const T*>(in.tensor());
  const int64_t down = in.number(), across = in.number();
  T* target = reinterpret_cast<T*>(in.tensor());
  const int64_t width = in.number();
  for (int64_t i = 0; i < rows; ++i, source += down, target += width) {
    if (across == 1)
      std::memcpy(target, source, columns * sizeof(T));
    else
      for (int64_t j = 0; j < columns; ++j) target[j] = source[j * across];
  }
}

// indices, count, lower bound, upper bound (exclusive), ignored value. Returns whether all are valid.
template <typename T>
bool look(Reader& in) {
  const T* index = reinterpret_cast<const T*>(in.tensor());
  const int64_t count = in.number(), low = in.number(), high = in.number(), ignored = in.number();
  bool fits = true;
  for (int64_t i = 0; i < count; ++i)
    fits &= (low <= index[i] && index[i] < high) || index[i] == ignored;
  return fits;
}

enum Instruction : int64_t {
  kEnd,
  kKernel,
  kProduct32,
  kProduct64,
  kFill32,
  kFill64,
  kLook32,
  kLook64,
};

// Sets the number of threads for products during its lifetime.
class Threads {
 public:
  explicit Threads(int count) : was_(set_threads ? set_threads(count) : 0) {}
  ~Threads() {
    if (set_threads) set_threads(was_);
  }

 private:
  int was_;
};

// Returns whether the program has run: false if an index is invalid.
bool interpret(const int64_t* program, char* const* bases) {
  Reader in(program, bases);
  const Threads threads(in.size());
  for (;;) {
    switch (in.number()) {
      case kEnd: return true;
      case kKernel: run_kernel(in); break;
      case kProduct32: run_product<float>(in, sgemm); break;
      case kProduct64: run_product<double>(in, dgemm); break;
      case kFill32: run_fill<float>(in); break;
      case kFill64: run_fill<double>(in); break;
      case kLook32:
        if (!look<int32_t>(in)) return false;
        break;
      case kLook64:
        if (!look<int64_t>(in)) return false;
        break;
    }
  }
}

// program, inputs, empty_strided, its arguments for each result, scratch -> results, or None
// if an index is invalid.
//
// The GIL is held throughout, so that only one call at a time uses the scratch memory.
PyObject* run(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 5) return PyErr_Format(PyExc_TypeError, "takes 5 arguments, got %zd", n);
  PyObject *inputs = args[1], *empty = args[2], *layouts = args[3];
  const Py_ssize_t given = PyList_GET_SIZE(inputs), made = PyTuple_GET_SIZE(layouts);
  PyObject* results = PyTuple_New(made);
  if (results == nullptr) return nullptr;
  try {
    std::vector<char*> bases(given + made + 1);
    for (Py_ssize_t i = 0; i < given; ++i)
      bases[i] = static_cast<char*>(data_ptr(PyList_GET_ITEM(inputs, i)));
    for (Py_ssize_t i = 0; i < made; ++i) {
      PyObject* result = PyObject_Call(empty, PyTuple_GET_ITEM(layouts, i), nullptr);
      if (result == nullptr) {
        Py_DECREF(results);
        return nullptr;
      }
      PyTuple_SET_ITEM(results, i, result);
      bases[given + i] = static_cast<char*>(data_ptr(result));
    }
    bases[given + made] = static_cast<char*>(PyLong_AsVoidPtr(args[4]));
    if (!interpret(reinterpret_cast<const int64_t*>(PyBytes_AS_STRING(args[0])), bases.data())) {
      Py_DECREF(results);
      Py_RETURN_NONE;
    }
  } catch (const std::exception& error) {
    Py_DECREF(results);
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return results;
}

// Takes the addresses of torch's function from a tensor object to its memory, and of BLAS functions.
PyObject* bind(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 4) return PyErr_Format(PyExc_TypeError, "takes 4 arguments, got %zd", n);
  void* addresses[4];
  for (int i = 0; i < 4; ++i) addresses[i] = PyLong_AsVoidPtr(args[i]);
  if (PyErr_Occurred()) return nullptr;
  if (addresses[1] == nullptr || addresses[2] == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "torch is linked with no BLAS of the usual names");
    return nullptr;
  }
  data_ptr = reinterpret_cast<void* (*)(PyObject*)>(addresses[0]);
  sgemm = reinterpret_cast<Gemm*>(addresses[1]);
  dgemm = reinterpret_cast<Gemm*>(addresses[2]);
  set_threads = reinterpret_cast<int (*)(int)>(addresses[3]);
  Py_RETURN_NONE;
}

template <typename F>
PyCFunction fast(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"run", fast(run), METH_FASTCALL, nullptr},
    {"bind", fast(bind), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "kernel", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_kernel() { return PyModule_Create(&definition); }
