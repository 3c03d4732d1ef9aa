// Optimizer updates on a CPU: one call for a param group, an overhead of nanoseconds for each tensor.
//
// Formulas and their order are those of torch.optim, which also computes some hyper-parameters in
// double. Callers have checked the layout: every tensor is dense, on the CPU and of the given dtype,
// and a parameter, its gradient and its state have the same number of elements in the same order.

#include <ATen/cpu/vec/vec.h>
#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

namespace {

// Returns the memory of a tensor object; torch's own function, called at its address.
void* (*data_ptr)(PyObject*);

constexpr int64_t kShared = 1 << 15;  // least number of elements of a tensor for several threads

template <typename T>
using Vec = at::vec::Vectorized<T>;

// Consecutive elements that fit into a register, or the remaining ones at the end.
struct Place {
  int64_t first;
  int count;

  template <typename T>
  Vec<T> load(const T* tensor) const {
    return Vec<T>::loadu(tensor + first, count);
  }

  template <typename T>
  void store(T* tensor, const Vec<T>& values) const {
    values.store(tensor + first, count);
  }
};

// Calls `update` for the positions from `first` to `last`, exclusive.
template <typename T, typename F>
void some(int64_t first, int64_t last, const F& update) {
  constexpr int64_t size = Vec<T>::size();
  int64_t i = first;
  for (; i + size <= last; i += size) update(Place{i, static_cast<int>(size)});
  if (i < last) update(Place{i, static_cast<int>(last - i)});
}

// Calls `update` for all positions of a tensor, on several threads if it is large.
template <typename T, typename F>
void each(int64_t n, int threads, const F& update) {
  if (threads < 2 || n < kShared) return some<T>(0, n, update);
  const int64_t share = (n / threads / 64 + 1) * 64;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i)
    some<T>(std::min(n, i * share), std::min(n, (i + 1) * share), update);
}

struct Adam {
  double lr, beta1, beta2, eps, weight_decay;
  bool amsgrad, maximize, decoupled;

  template <typename T>
  void update(T* param, T* grad, T* const* state, double step, int64_t n, int threads) const {
    T *exp_avg = state[0], *exp_avg_sq = state[1], *max_exp_avg_sq = state[2];
    const double share = 1 - beta1;
    const bool is_small = share < 0.5, decays = weight_decay != 0, keeps_most = amsgrad;
    const Vec<T> step_size(lr / (1 - std::pow(beta1, step))), tiny(eps);
    const Vec<T> root(std::sqrt(1 - std::pow(beta2, step)));
    const Vec<T> towards(is_small ? share : share - 1), keep_sq(beta2), share_sq(1 - beta2);
    const Vec<T> kept(1 - lr * weight_decay), decay(weight_decay), sign(maximize ? -1 : 1);
    const bool shrinks = decays && decoupled, pulls = decays && !decoupled;
    each<T>(n, threads, [=](Place at) {
      Vec<T> p = at.load(param), g = at.load(grad) * sign;
      if (shrinks) p = p * kept;
      if (pulls) g = g + decay * p;
      Vec<T> mean = at.load(exp_avg), square = at.load(exp_avg_sq);
      mean = (is_small ? mean : g) + towards * (g - mean);
      square = keep_sq * square + share_sq * (g * g);
      at.store(exp_avg, mean);
      at.store(exp_avg_sq, square);
      if (keeps_most) {
        square = at::vec::maximum(at.load(max_exp_avg_sq), square);
        at.store(max_exp_avg_sq, square);
      }
      at.store(param, p - step_size * (mean / (square.sqrt() / root + tiny)));
    });
  }
};

struct Sgd {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize;

  template <typename T>
  void update(T* param, T* grad, T* const* state, double, int64_t n, int threads) const {
    T* buffer = state[0];
    const bool pulls = weight_decay != 0, ahead = nesterov;
    const Vec<T> rate(lr), decay(weight_decay), keep(momentum), share(1 - dampening);
    const Vec<T> sign(maximize ? -1 : 1);
    each<T>(n, threads, [=](Place at) {
      Vec<T> p = at.load(param), g = at.load(grad) * sign;
      if (pulls) g = g + decay * p;
      if (buffer != nullptr) {
        const Vec<T> mean = keep * at.load(buffer) + share * g;
        at.store(buffer, mean);
        g = ahead ? g + keep * mean : mean;
      }
      at.store(param, p - rate * g);
    });
  }
};

struct Adagrad {
  double lr, lr_decay, eps, weight_decay;
  bool maximize;

  template <typename T>
  void update(T* param, T* grad, T* const* state, double step, int64_t n, int threads) const {
    T* sum = state[0];
    const bool pulls = weight_decay != 0;
    const Vec<T> rate(lr / (1 + (step - 1) * lr_decay)), decay(weight_decay), tiny(eps);
    const Vec<T> sign(maximize ? -1 : 1);
    each<T>(n, threads, [=](Place at) {
      Vec<T> p = at.load(param), g = at.load(grad) * sign;
      if (pulls) g = g + decay * p;
      const Vec<T> total = at.load(sum) + g * g;
      at.store(sum, total);
      at.store(param, p - rate * (g / (total.sqrt() + tiny)));
    });
  }
};

template <typename T>
void scale(T* grad, double factor, int64_t n, int threads) {
  const Vec<T> by(factor);
  each<T>(n, threads, [=](Place at) { at.store(grad, at.load(grad) * by); });
}

// Pointers to some tensors of a tuple.
template <typename T>
std::vector<T*> pointers(PyObject* tuple, size_t first, size_t count) {
  std::vector<T*> found(count);
  for (size_t i = 0; i < count; ++i)
    found[i] = static_cast<T*>(data_ptr(PyTuple_GET_ITEM(tuple, first + i)));
  return found;
}

// The arguments of every kernel: sizes, is_double, threads, factor, counts, tensors, written, then
// options in the order of torch's kernel. `sizes` are bytes: an int64 for each parameter. `tensors`
// are the result of `gather`: parameters, gradients, each kind of state and, if `counts`, step
// counters. `written` is called with the tensors whose version counters must be bumped.
constexpr Py_ssize_t kCommon = 7;
constexpr size_t kStates = 3;  // largest number of kinds of state; missing ones are null

template <typename T, typename Rule>
void update_all(const Rule& rule, PyObject* const* args, int threads, double factor) {
  const auto* sizes = reinterpret_cast<const int64_t*>(PyBytes_AS_STRING(args[0]));
  const size_t n = PyBytes_GET_SIZE(args[0]) / sizeof(int64_t);
  const size_t total = PyTuple_GET_SIZE(args[5]), counted = args[4] == Py_True ? n : 0;
  const auto tensors = pointers<T>(args[5], 0, total - counted);
  const auto steps = pointers<float>(args[5], total - counted, counted);
  Py_BEGIN_ALLOW_THREADS
  for (size_t i = 0; i < n; ++i) {
    T *param = tensors[i], *grad = tensors[n + i];
    T* state[kStates] = {};
    for (size_t j = 0; j < kStates && (j + 3) * n <= tensors.size(); ++j)
      state[j] = tensors[(j + 2) * n + i];
    const double step = steps.empty() ? 0 : *steps[i] += 1;
    if (factor != 1) scale(grad, factor, sizes[i], threads);
    rule.update(param, grad, state, step, sizes[i], threads);
  }
  Py_END_ALLOW_THREADS
}

// Calls `written` with the parameters and state, and with the gradients if they were multiplied.
PyObject* tell(PyObject* const* args, double factor) {
  const Py_ssize_t n = PyBytes_GET_SIZE(args[0]) / sizeof(int64_t);
  const Py_ssize_t end = PyTuple_GET_SIZE(args[5]) - (args[4] == Py_True ? n : 0);
  const Py_ssize_t skipped = factor == 1 ? n : 0;
  PyObject* tensors = PyTuple_New(end - skipped);
  if (tensors == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < end - skipped; ++i)
    PyTuple_SET_ITEM(tensors, i, Py_NewRef(PyTuple_GET_ITEM(args[5], i < n ? i : i + skipped)));
  PyObject* told = PyObject_CallOneArg(args[6], tensors);
  Py_DECREF(tensors);
  return told;
}

template <typename Rule>
PyObject* run(const Rule& rule, PyObject* const* args) {
  const int threads = static_cast<int>(PyLong_AsLong(args[2]));
  const double factor = PyFloat_AsDouble(args[3]);
  if (PyErr_Occurred()) return nullptr;  // also for an option that is not a number
  try {
    if (args[1] == Py_True)
      update_all<double>(rule, args, threads, factor);
    else
      update_all<float>(rule, args, threads, factor);
  } catch (const std::exception& error) {  // no memory for a list; an object that is not a tensor
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return tell(args, factor);
}

bool are(Py_ssize_t given, Py_ssize_t options) {
  if (given == kCommon + options) return true;
  PyErr_Format(PyExc_TypeError, "takes %zd arguments, got %zd", kCommon + options, given);
  return false;
}

double number(PyObject* value) { return PyFloat_AsDouble(value); }
bool flag(PyObject* value) { return PyObject_IsTrue(value) == 1; }

template <bool kDecoupled>
PyObject* adam(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!are(n, 7)) return nullptr;
  PyObject* const* o = args + kCommon;
  return run(Adam{.lr = number(o[0]), .beta1 = number(o[1]), .beta2 = number(o[2]),
                  .eps = number(o[4]), .weight_decay = number(o[3]), .amsgrad = flag(o[5]),
                  .maximize = flag(o[6]), .decoupled = kDecoupled},
             args);
}

PyObject* sgd(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!are(n, 7)) return nullptr;  // the last option, whether this is the first step, is always false
  PyObject* const* o = args + kCommon;
  return run(Sgd{.lr = number(o[2]), .momentum = number(o[1]), .dampening = number(o[3]),
                 .weight_decay = number(o[0]), .nesterov = flag(o[4]), .maximize = flag(o[5])},
             args);
}

PyObject* adagrad(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!are(n, 5)) return nullptr;
  PyObject* const* o = args + kCommon;
  return run(Adagrad{.lr = number(o[0]), .lr_decay = number(o[1]), .eps = number(o[3]),
                     .weight_decay = number(o[2]), .maximize = flag(o[4])},
             args);
}

// An owned reference, released at the end of its lifetime.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  Owned(Owned&& other) : object_(other.release()) {}
  ~Owned() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  PyObject* object_;
};

// Appends the item called `name` of every state; returns whether all states have it.
bool add_states(PyObject* found, Py_ssize_t first, PyObject* name, PyObject* states,
                const std::vector<Py_ssize_t>& kept) {
  for (const Py_ssize_t i : kept) {
    PyObject* state = PyList_GET_ITEM(states, i);
    PyObject* value = PyDict_Check(state) ? PyDict_GetItemWithError(state, name) : nullptr;
    if (value == nullptr || value == Py_None) return false;
    PyTuple_SET_ITEM(found, first++, Py_NewRef(value));
  }
  return true;
}

// params, states, names, count, check -> a tuple of the parameters that have a gradient, their
// gradients, and for each name the tensors of their states. None if a state lacks a name, if the
// number of tensors is not `count`, or if `check`, called with all of them, does not return True.
PyObject* gather(PyObject*, PyObject* const* args, Py_ssize_t given) {
  static PyObject* grad_name = PyUnicode_InternFromString("grad");
  if (given != 5 || !PyList_Check(args[0]) || !PyList_Check(args[1]) || !PyTuple_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "takes two lists, a tuple, a number and a function");
    return nullptr;
  }
  PyObject *params = args[0], *states = args[1], *names = args[2];
  if (PyList_GET_SIZE(params) != PyList_GET_SIZE(states)) Py_RETURN_NONE;
  std::vector<Py_ssize_t> kept;
  std::vector<Owned> grads;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
    Owned grad(PyObject_GetAttr(PyList_GET_ITEM(params, i), grad_name));
    if (grad.get() == nullptr) return nullptr;
    if (grad.get() == Py_None) continue;
    kept.push_back(i);
    grads.push_back(std::move(grad));
  }
  const Py_ssize_t count = kept.size(), kinds = PyTuple_GET_SIZE(names);
  if ((2 + kinds) * count != PyLong_AsSsize_t(args[3])) Py_RETURN_NONE;
  Owned found(PyTuple_New((2 + kinds) * count));
  if (found.get() == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyTuple_SET_ITEM(found.get(), i, Py_NewRef(PyList_GET_ITEM(params, kept[i])));
    PyTuple_SET_ITEM(found.get(), count + i, grads[i].release());
  }
  for (Py_ssize_t kind = 0; kind < kinds; ++kind) {
    PyObject* name = PyTuple_GET_ITEM(names, kind);
    if (!add_states(found.get(), (2 + kind) * count, name, states, kept)) {
      if (PyErr_Occurred()) return nullptr;
      Py_RETURN_NONE;
    }
  }
  Owned fits(PyObject_Call(args[4], found.get(), nullptr));
  if (fits.get() == nullptr) return nullptr;
  return fits.get() == Py_True ? found.release() : Py_NewRef(Py_None);
}

// Takes the address of torch's function from a tensor object to its memory.
PyObject* bind(PyObject*, PyObject* address) {
  data_ptr = reinterpret_cast<void* (*)(PyObject*)>(PyLong_AsVoidPtr(address));
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NONE;
}

template <typename F>
PyCFunction fast(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"adam", fast(adam<false>), METH_FASTCALL, nullptr},
    {"adamw", fast(adam<true>), METH_FASTCALL, nullptr},
    {"sgd", fast(sgd), METH_FASTCALL, nullptr},
    {"adagrad", fast(adagrad), METH_FASTCALL, nullptr},
    {"gather", fast(gather), METH_FASTCALL, nullptr},
    {"bind", bind, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "kernel", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_kernel() { return PyModule_Create(&definition); }
